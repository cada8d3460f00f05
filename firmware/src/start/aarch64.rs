//! The start-up of an aarch64 processor at EL1 with RAM in the second GiB, as in QEMU's virt machine.

use core::arch::{asm, global_asm};

use semihosting::{println, process};

global_asm!(
    r#"
    .section .text.start, "ax"
    .global _start
_start:
    // Neon instructions trap unless they are enabled.
    mov     x0, #(3 << 20)
    msr     cpacr_el1, x0
    adr     x0, vectors
    msr     vbar_el1, x0
    isb

    // Without a page table all memory has the type of devices, for which accesses must be aligned to their
    // size. With addresses of 39 bits and pages of 4 KiB, an entry of the first table covers 1 GiB. Table
    // walks are cached and shareable.
    ldr     x0, =0xff00
    msr     mair_el1, x0
    ldr     x0, =(25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23)
    msr     tcr_el1, x0
    adrp    x0, table
    msr     ttbr0_el1, x0
    tlbi    vmalle1
    dsb     sy
    isb
    mrs     x0, sctlr_el1
    mov     x1, #(1 | 1 << 2 | 1 << 12)
    orr     x0, x0, x1
    msr     sctlr_el1, x0
    isb

    ldr     x0, =__stack_top
    mov     sp, x0
    ldr     x0, =__bss_start
    ldr     x1, =__bss_end
1:  cmp     x0, x1
    b.hs    2f
    stp     xzr, xzr, [x0], #16
    b       1b
2:  b       {main}

    .balign 2048
vectors:
    .rept 16
    .balign 128
    b       {fault}
    .endr

    .section .data.table, "aw"
    .balign 4096
table:
    // Both entries are marked as accessed. The first GiB contains devices, the second is inner-shareable
    // memory with attribute 1.
    .quad   0x00000401
    .quad   0x40000705
    .fill   510, 8, 0
"#,
    fault = sym fault,
    main = sym crate::main,
);

extern "C" fn fault() -> ! {
    let (syndrome, at): (u64, u64);
    // SAFETY: this only reads the registers that contain the cause and the address of the exception.
    unsafe { asm!("mrs {}, esr_el1", "mrs {}, elr_el1", out(reg) syndrome, out(reg) at) };
    println!("exception: syndrome {syndrome:#x} at {at:#x}");
    process::exit(1)
}
