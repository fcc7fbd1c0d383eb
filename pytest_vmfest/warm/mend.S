# What a guest that was resumed from a template is mended by: it sets the clock forward exactly, and makes the
# kernel's random numbers its own. No tool that every guest has can do either: busybox's date knows whole
# seconds only, and what is written to /dev/urandom counts at the kernel's next reseeding, minutes later.
#
#   mend SECONDS MICROSECONDS TEXT
#
# adds SECONDS.MICROSECONDS to the clock, unless both are 0 (SECONDS may be negative, MICROSECONDS not), makes
# random numbers of TEXT, unless it is empty (hexadecimal digits, which nobody can guess: it is credited with
# 4 bits for each; 248 at most), and writes the clock's time then to standard output: two numbers of 64 bits,
# seconds and nanoseconds. Exit status: 0, or 1 if the kernel refused, 2 for wrong arguments.
#
# For Linux 4.14 and newer on x86-64. Build (GNU binutils), result shipped as mend.bin:
#   as --64 -mx86-used-note=no mend.S -o mend.o
#   ld -m elf_x86_64 -n -z noseparate-code --build-id=none -s mend.o -o mend.bin

        .intel_syntax noprefix

        .set WRITE, 1
        .set OPEN, 2
        .set IOCTL, 16
        .set EXIT, 60
        .set ADJTIMEX, 159
        .set CLOCK_GETTIME, 228

        .set O_WRONLY, 1
        .set RNDADDENTROPY, 0x40085203  # linux/random.h
        .set RNDRESEEDCRNG, 0x5207
        .set POOL_BITS, 0               # struct rand_pool_info, with its fields
        .set POOL_BYTES, 4
        .set POOL_BUFFER, 8
        .set POOL_MOST, 248
        .set ADJ_SETOFFSET, 0x100       # linux/timex.h
        .set TIMEX_SIZE, 208            # struct timex, with its fields
        .set TIMEX_SECONDS, 72
        .set TIMEX_MICROSECONDS, 80
        .set STDOUT, 1
        .set BITS_A_CHARACTER, 4

        .globl _start
        .text
_start:
        mov     rbp, rsp                # argc, argv[0], argv[1], ...
        cmp     qword ptr [rbp], 4
        jne     wrong

        mov     rsi, [rbp + 16]
        call    number
        mov     r12, rax
        mov     rsi, [rbp + 24]
        call    number
        mov     r13, rax
        or      rax, r12
        jz      reseed

        sub     rsp, TIMEX_SIZE
        mov     rdi, rsp
        mov     ecx, TIMEX_SIZE / 8
        xor     eax, eax
        rep     stosq
        mov     dword ptr [rsp], ADJ_SETOFFSET
        mov     [rsp + TIMEX_SECONDS], r12
        mov     [rsp + TIMEX_MICROSECONDS], r13
        mov     rdi, rsp
        mov     eax, ADJTIMEX
        syscall
        test    rax, rax                # the clock's state, or an error
        js      refused

reseed:
        mov     rbx, [rbp + 32]
        xor     edx, edx
length: cmp     byte ptr [rbx + rdx], 0
        je      measured
        inc     rdx
        jmp     length
measured:
        test    edx, edx
        jz      tell
        cmp     edx, POOL_MOST
        ja      wrong
        mov     r12d, edx
        sub     rsp, POOL_BUFFER + POOL_MOST
        lea     eax, [r12 * BITS_A_CHARACTER]
        mov     [rsp + POOL_BITS], eax
        mov     [rsp + POOL_BYTES], r12d
        lea     rdi, [rsp + POOL_BUFFER]
        mov     rsi, rbx
        mov     ecx, r12d
        rep     movsb

        lea     rdi, [rip + urandom]
        mov     esi, O_WRONLY
        mov     eax, OPEN
        syscall
        test    rax, rax
        js      refused
        mov     r13, rax
        mov     rdi, r13
        mov     esi, RNDADDENTROPY
        mov     rdx, rsp
        mov     eax, IOCTL
        syscall
        test    rax, rax
        js      refused
        mov     rdi, r13
        mov     esi, RNDRESEEDCRNG
        mov     eax, IOCTL
        syscall
        test    rax, rax
        js      refused

tell:
        sub     rsp, 16
        xor     edi, edi                # CLOCK_REALTIME
        mov     rsi, rsp
        mov     eax, CLOCK_GETTIME
        syscall
        mov     edi, STDOUT
        mov     rsi, rsp
        mov     edx, 16
        mov     eax, WRITE
        syscall
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

# The decimal number at rsi, in rax; anything else than digits after an optional minus is wrong.
number:
        xor     eax, eax
        xor     ecx, ecx                # whether it is negative
        cmp     byte ptr [rsi], '-'
        jne     first
        inc     ecx
        inc     rsi
first:  cmp     byte ptr [rsi], 0
        je      wrong
digit:  movzx   edx, byte ptr [rsi]
        test    edx, edx
        jz      done
        sub     edx, '0'
        cmp     edx, 9
        ja      wrong
        imul    rax, rax, 10
        add     rax, rdx
        inc     rsi
        jmp     digit
done:   test    ecx, ecx
        jz      back
        neg     rax
back:   ret

urandom:
        .asciz  "/dev/urandom"
