"""A guest that fits into one boot sector, for all that needs no operating system.

It writes ``ready`` and the text in the disk's second sector to the serial port, then each line that is typed.
A line that begins with ``!`` is also written to the second sector, then it says ``written``; one that begins
with ``~`` switches the machine off, as the ACPI power button does. The line that is being typed is in memory
only, so it tells whether memory came back. The listing has the ACPI ports of QEMU's q35 with its BIOS.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Acpi:
    """Where a machine's firmware puts the power management's registers, and what switches it off."""

    ports: int
    sleep: int


Q35 = Acpi(ports=0x600, sleep=0x2000)
VIRTUALBOX = Acpi(ports=0x4000, sleep=0x3400)

# Machine code, and the source of it for the GNU assembler (.code16, loaded at 0x7c00).
_LISTING = """
31 c0     | start:   xor   %ax, %ax
8e d8     |          mov   %ax, %ds
8e c0     |          mov   %ax, %es
8e d0     |          mov   %ax, %ss
bc 00 7c  |          mov   $0x7c00, %sp
fc        |          cld
fb        |          sti
ba 02 06  |          mov   $0x602, %dx          # ACPI PM1 enable: the power button counts
b8 00 01  |          mov   $0x0100, %ax
ef        |          outw  %ax, %dx
b8 01 02  |          mov   $0x0201, %ax         # BIOS: read the second sector to 0x8200
bb 00 82  |          mov   $0x8200, %bx
e8 69 00  |          call  disk
be ac 7c  |          mov   $greet+0x7c00, %si
e8 6c 00  |          call  print
be 00 82  |          mov   $0x8200, %si
e8 66 00  |          call  print
e8 6d 00  |          call  newline
bf 00 80  |          mov   $0x8000, %di         # the line that is being typed
b4 01     | wait:    mov   $1, %ah              # BIOS: is there a key?
cd 16     |          int   $0x16
75 0c     |          jnz   key
ba 00 06  |          mov   $0x600, %dx          # ACPI PM1 status: was the power button pressed?
ed        |          inw   %dx, %ax
f6 c4 01  |          test  $1, %ah
75 3f     |          jnz   off
f4        |          hlt                        # until the next timer interrupt
eb ee     |          jmp   wait
30 e4     | key:     xor   %ah, %ah
cd 16     |          int   $0x16
3c 0d     |          cmp   $13, %al
74 0a     |          je    enter
aa        |          stosb
b4 0e     |          mov   $0x0e, %ah           # BIOS: show it
bb 07 00  |          mov   $7, %bx
cd 10     |          int   $0x10
eb dc     |          jmp   wait
30 c0     | enter:   xor   %al, %al
aa        |          stosb
be 00 80  |          mov   $0x8000, %si
e8 33 00  |          call  print
e8 3a 00  |          call  newline
bf 00 80  |          mov   $0x8000, %di
8a 05     |          mov   (%di), %al
3c 7e     |          cmp   $'~', %al            # a line that begins with ~: switch off
74 15     |          je    off
3c 21     |          cmp   $'!', %al            # a line that begins with !: write it to the second sector
75 c3     |          jne   wait
b8 01 03  |          mov   $0x0301, %ax
bb 00 80  |          mov   $0x8000, %bx
e8 11 00  |          call  disk
be b3 7c  |          mov   $done+0x7c00, %si
e8 14 00  |          call  print
eb b2     |          jmp   wait
ba 04 06  | off:     mov   $0x604, %dx          # ACPI PM1 control: sleep state 5
b8 00 20  |          mov   $0x2000, %ax
ef        |          outw  %ax, %dx
eb f7     |          jmp   off
b9 02 00  | disk:    mov   $2, %cx
ba 80 00  |          mov   $0x80, %dx
cd 13     |          int   $0x13
c3        |          ret
ac        | print:   lodsb
84 c0     |          test  %al, %al
74 17     |          jz    ret
e8 04 00  |          call  put
eb f6     |          jmp   print
b0 0a     | newline: mov   $10, %al
88 c4     | put:     mov   %al, %ah
ba fd 03  | full:    mov   $0x3fd, %dx          # serial port: wait until it takes a byte
ec        |          inb   %dx, %al
a8 20     |          test  $0x20, %al
74 f8     |          jz    full
88 e0     |          mov   %ah, %al
ba f8 03  |          mov   $0x3f8, %dx
ee        |          outb  %al, %dx
c3        | ret:     ret
"""
_STRINGS = b"ready \0written\n\0"

DISK_BYTES = 1 << 20


def disk(acpi: Acpi = Q35) -> bytes:
    """A raw disk that boots the guest."""
    code = bytes.fromhex("".join(line.partition("|")[0] for line in _LISTING.splitlines()))
    for register in (0, 2, 4):
        code = code.replace(_move_to_dx(Q35.ports + register), _move_to_dx(acpi.ports + register))
    code = code.replace(_move_to_ax(Q35.sleep), _move_to_ax(acpi.sleep))
    sector = (code + _STRINGS).ljust(510, b"\0") + b"\x55\xaa"
    return sector.ljust(DISK_BYTES, b"\0")


def _move_to_dx(value: int) -> bytes:
    return b"\xba" + value.to_bytes(2, "little")


def _move_to_ax(value: int) -> bytes:
    return b"\xb8" + value.to_bytes(2, "little")
