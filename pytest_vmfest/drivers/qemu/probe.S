# The probe guest: a boot disk that does, in small, what a kernel does before it can call itself started,
# and then tells QEMU's isa-debug-exit device that it got through. accel.py runs it to find out whether
# KVM is worth using: some hosts offer a KVM that works through guest kernels instruction by instruction in
# software. There everything "works", at about a million instructions per second, and no stock kernel ever
# gets past unpacking itself. So each mode of the processor has to do a measured amount of work here.
#
# Build (GNU binutils), result shipped as probe.bin:
#   as --64 -mx86-used-note=no probe.S -o probe.o
#   ld -m elf_x86_64 -Ttext 0x7c00 -e start --oformat binary probe.o -o probe.bin
#
# Before each step its letter goes to the debug console (port 0xe9); accel.py knows the letters by name.
# Memory: 0x7c00 this code (stack below it), 0x6000 scratch, 0x10000 page tables, 1 MiB and up work area.

        .intel_syntax noprefix

        .set CONSOLE, 0xe9
        .set EXIT, 0xf4
        .set PASSED, 0x2a               # QEMU's exit status becomes (value << 1) | 1
        .set FAILED, 0x01

        .set ROUNDS, 4000000            # of work, 8 instructions each, in each of three modes
        .set SUM, 0x62546780            # what the work has to yield
        .set EXITS, 200                 # CPUID instructions; each leaves the guest
        .set PAGES, 64
        .set TICKS, 20

        .set STACK, 0x7c00
        .set SCRATCH, 0x6000
        .set PML4, 0x10000
        .set PDPT_LOW, 0x11000
        .set PDPT_HIGH, 0x12000
        .set PD_LINEAR, 0x13000         # the first GiB, in pages of 2 MiB
        .set PD_LAZY, 0x14000
        .set PT_LAZY, 0x15000           # empty: the page fault handler fills it
        .set TABLES_END, 0x16000
        .set WORK_AREA, 0x100000
        .set LAZY_FRAMES, 0x200000      # physical memory behind LAZY
        .set LAZY, 0x40000000
        .set HIGH, 0xffffffff80000000   # where Linux lives

        .set CODE32, 0x08
        .set DATA, 0x10
        .set CODE64, 0x18

        .macro step letter
        mov al, \letter
        out CONSOLE, al
        .endm

# One text for 32-bit and 64-bit code: additions, multiplications and scattered writes to 1 MiB.
# Leaves the sum in ebx.
        .macro work
        mov edi, WORK_AREA
        mov ecx, ROUNDS
        xor ebx, ebx
1:      lea eax, [ebx + ecx]
        imul ebx, eax, 1664525
        add ebx, 1013904223
        mov eax, ebx
        and eax, 0xffffc
        xor [edi + eax], ebx
        dec ecx
        jnz 1b
        cmp ebx, SUM
        .endm

# ---------------------------------------------------------------- real mode, the firmware's services
        .code16
        .globl start
start:  cli
        xor ax, ax
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov sp, STACK
        ljmp 0, offset 1f
1:      sti
        step 'd'
        mov si, offset rest             # int 13h 42h: read the sectors after this one
        mov ah, 0x42
        int 0x13
        jc fail
        step 'm'
        xor ebx, ebx                    # int 15h e820: the memory map, entry by entry
        mov di, SCRATCH
1:      mov eax, 0xe820
        mov edx, 0x534d4150             # "SMAP"
        mov ecx, 24
        int 0x15
        jc fail
        test ebx, ebx
        jnz 1b
        mov ax, 0x2401                  # int 15h 2401: open the A20 gate
        int 0x15
        jc fail

        cli
        lgdt [gdtr]
        mov eax, cr0
        or al, 1                        # PE
        mov cr0, eax
        ljmp CODE32, offset protected

fail:   mov al, FAILED                  # the same bytes in all modes
        out EXIT, al
        jmp fail

        .balign 4
rest:   .byte 16, 0
        .word (end - start) / 512 - 1   # sectors
        .word start + 512, 0            # to offset, segment
        .quad 1                         # from sector

gdtr:   .word gdt_end - gdt - 1
        .long gdt
        .balign 8
gdt:    .quad 0
        .quad 0x00cf9b000000ffff        # CODE32
        .quad 0x00cf93000000ffff        # DATA
        .quad 0x00af9b000000ffff        # CODE64
gdt_end:
        .org start + 510
        .word 0xaa55

# ---------------------------------------------------------------- protected mode
        .code32
protected:
        mov ax, DATA
        mov ds, ax
        mov es, ax
        mov ss, ax
        mov esp, STACK
        step 'p'
        work
        jne fail

        step 'l'
        mov edi, PML4
        mov ecx, (TABLES_END - PML4) / 4
        xor eax, eax
        rep stosd
        mov dword ptr [PML4], PDPT_LOW + 3              # 3: present, writable
        mov dword ptr [PML4 + 511 * 8], PDPT_HIGH + 3
        mov dword ptr [PDPT_LOW], PD_LINEAR + 3
        mov dword ptr [PDPT_LOW + 8], PD_LAZY + 3
        mov dword ptr [PDPT_HIGH + 510 * 8], PD_LINEAR + 3
        mov dword ptr [PD_LAZY], PT_LAZY + 3
        mov edi, PD_LINEAR
        mov eax, 0x83                                   # present, writable, 2 MiB
        mov ecx, 512
1:      mov [edi], eax
        add eax, 0x200000
        add edi, 8
        loop 1b

        mov eax, cr4
        or eax, 0x20                    # PAE
        mov cr4, eax
        mov eax, PML4
        mov cr3, eax
        mov ecx, 0xc0000080             # EFER
        rdmsr
        or eax, 0x100                   # LME
        wrmsr
        mov eax, cr0
        or eax, 0x80000000              # PG
        mov cr0, eax
        ljmp CODE64, offset long_mode

# ---------------------------------------------------------------- long mode
        .code64
long_mode:
        work
        jne fail64
        step 'h'
        mov rax, offset high + HIGH
        jmp rax
high:   work
        jne fail64
        mov eax, offset low
        jmp rax
fail64: jmp fail

low:    step 'c'
        rdtsc
        shl rdx, 32
        or rax, rdx
        mov r8, rax
        mov esi, EXITS
1:      xor eax, eax
        xor ecx, ecx
        cpuid
        dec esi
        jnz 1b
        rdtsc                           # the time stamp counter has to run on
        shl rdx, 32
        or rax, rdx
        cmp rax, r8
        jbe fail64

        step 'f'
        lidt [idtr]
        xor r9d, r9d                    # faults counted by the handler
        mov r10d, 2                     # rounds: the second one has to fault anew
2:      mov edi, LAZY
        mov ecx, PAGES
1:      mov [rdi], rdi
        add rdi, 0x1000
        loop 1b
        mov rax, [LAZY_FRAMES + (PAGES - 1) * 0x1000]
        cmp rax, LAZY + (PAGES - 1) * 0x1000
        jne fail64
        mov edi, PT_LAZY
        mov ecx, 512
        xor eax, eax
        rep stosq
        mov rax, cr3
        mov cr3, rax
        dec r10d
        jnz 2b
        cmp r9d, 2 * PAGES
        jne fail64

        step 't'
        mov esi, offset pic_setup       # pairs of port, value
        mov ecx, (pic_setup_end - pic_setup) / 2
        xor edx, edx
1:      lodsb
        mov dl, al
        lodsb
        out dx, al
        loop 1b
        mov r9d, TICKS                  # counted down by the handler
1:      sti
        hlt
        cli
        test r9d, r9d
        jnz 1b

        step '.'
        mov al, PASSED
        out EXIT, al
1:      hlt
        jmp 1b

page_fault:
        push rax
        push rbx
        mov rax, cr2
        mov ebx, eax
        shr ebx, 12
        and ebx, 511
        and eax, 0x1ff000
        add eax, LAZY_FRAMES + 3
        mov [PT_LAZY + rbx * 8], rax
        inc r9d
        pop rbx
        pop rax
        add rsp, 8                      # the error code
        iretq

tick:   dec r9d
        push rax
        mov al, 0x20                    # end of interrupt
        out 0x20, al
        pop rax
        iretq

pic_setup:                              # interrupt 0 to vector 32, all others masked; timer at 1 kHz
        .byte 0x20, 0x11, 0x21, 32, 0x21, 4, 0x21, 1
        .byte 0xa0, 0x11, 0xa1, 40, 0xa1, 2, 0xa1, 1
        .byte 0x21, 0xfe, 0xa1, 0xff
        .byte 0x43, 0x34, 0x40, 1193 & 0xff, 0x40, 1193 >> 8
pic_setup_end:

idtr:   .word idt_end - idt - 1
        .quad idt
        .macro gate handler
        .word \handler, CODE64, 0x8e00, 0
        .quad 0
        .endm
        .balign 16
idt:    .fill 14 * 16, 1, 0             # any other exception ends in a reset, which ends QEMU
        gate page_fault
        .fill (32 - 15) * 16, 1, 0
        gate tick
idt_end:
        .balign 512
end:
