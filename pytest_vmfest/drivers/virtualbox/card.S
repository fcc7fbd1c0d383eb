# Gives a network card its address for good: writes it to the card's EEPROM, by way of the card's driver.
# What `ip link set address` does is known to the guest alone. VirtualBox asks the EEPROM which frames the card
# is to get, and a guest that boots anew finds its address there; a card that went on with its guest from a
# saved state has the EEPROM from there, too.
#
#   card NAME ADDRESS
#
# ADDRESS is 12 lower-case hexadecimal digits. Exit status: 0, or 1 if the driver refused (not all can write
# EEPROMs: Linux's e1000 can), 2 for wrong arguments.
#
# For Linux on x86-64. Build (GNU binutils), result shipped as card.bin:
#   as --64 -mx86-used-note=no card.S -o card.o
#   ld -m elf_x86_64 -n -z noseparate-code --build-id=none -s card.o -o card.bin

        .intel_syntax noprefix

        .set IOCTL, 16
        .set SOCKET, 41
        .set EXIT, 60

        .set AF_INET, 2
        .set SOCK_DGRAM, 2
        .set SIOCETHTOOL, 0x8946
        .set ETHTOOL_GEEPROM, 0x0b      # linux/ethtool.h
        .set ETHTOOL_SEEPROM, 0x0c
        .set NAME, 0                    # struct ifreq, with its fields
        .set NAME_MOST, 15
        .set DATA, 16
        .set COMMAND, 40                # behind it, struct ethtool_eeprom: magic, offset 0, length, bytes
        .set LENGTH, 52
        .set BYTES, 56
        .set SIZE, 64
        .set ADDRESS_BYTES, 6

        .globl _start
        .text
_start:
        mov     rbp, rsp                # argc, argv[0], argv[1], ...
        cmp     qword ptr [rbp], 3
        jne     wrong

        sub     rsp, SIZE
        mov     rdi, rsp
        mov     ecx, SIZE / 8
        xor     eax, eax
        rep     stosq

        mov     rsi, [rbp + 16]
        xor     ecx, ecx
letter: mov     al, [rsi + rcx]
        test    al, al
        jz      named
        cmp     ecx, NAME_MOST
        je      wrong
        mov     [rsp + NAME + rcx], al
        inc     ecx
        jmp     letter
named:
        lea     rax, [rsp + COMMAND]
        mov     [rsp + DATA], rax
        mov     dword ptr [rsp + LENGTH], ADDRESS_BYTES

        mov     edi, AF_INET
        mov     esi, SOCK_DGRAM
        xor     edx, edx
        mov     eax, SOCKET
        syscall
        test    rax, rax
        js      refused
        mov     rbx, rax

        # Reading tells the magic number that writing asks for.
        mov     dword ptr [rsp + COMMAND], ETHTOOL_GEEPROM
        call    ask

        mov     rsi, [rbp + 24]
        lea     rdi, [rsp + BYTES]
        mov     ecx, ADDRESS_BYTES
octet:  call    digit
        mov     edx, eax
        shl     edx, 4
        call    digit
        or      eax, edx
        stosb
        dec     ecx
        jnz     octet
        cmp     byte ptr [rsi], 0
        jne     wrong

        mov     dword ptr [rsp + COMMAND], ETHTOOL_SEEPROM
        call    ask
        xor     edi, edi
        jmp     leave

wrong:
        mov     edi, 2
        jmp     leave
refused:
        mov     edi, 1
leave:
        mov     eax, EXIT
        syscall

# What the command says, of the interface that was named.
ask:
        mov     rdi, rbx
        mov     esi, SIOCETHTOOL
        lea     rdx, [rsp + 8]          # behind the return address
        mov     eax, IOCTL
        syscall
        test    rax, rax
        js      refused
        ret

# The value of the hexadecimal digit at rsi, in eax; rsi goes on.
digit:
        lodsb
        movzx   eax, al
        sub     eax, '0'
        cmp     eax, 9
        jbe     back
        sub     eax, 'a' - '0'
        cmp     eax, 5
        ja      wrong
        add     eax, 10
back:   ret
