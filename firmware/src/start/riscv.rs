//! The start-up of a RISC-V processor in machine mode, as in QEMU's virt machine without firmware, which
//! enters the image at its beginning.

use core::arch::{asm, global_asm};

use semihosting::{println, process};

global_asm!(
    r#"
    .section .text.start, "ax"
    .global _start
_start:
    la      t0, trap
    csrw    mtvec, t0
    // Floating point instructions trap unless the state of their registers is enabled. On processors without
    // floating point this has no effect.
    li      t0, 1 << 13
    csrs    mstatus, t0
    la      sp, __stack_top
    la      t0, __bss_start
    la      t1, __bss_end
1:  bgeu    t0, t1, 2f
    sw      zero, 0(t0)
    addi    t0, t0, 4
    j       1b
2:  tail    {main}

    // The lowest bits of the trap vector's address are a mode, and so must be zero.
    .balign 4
trap:
    tail    {fault}
"#,
    main = sym crate::main,
    fault = sym fault,
);

extern "C" fn fault() -> ! {
    let (cause, at): (usize, usize);
    // SAFETY: this only reads the registers that contain the cause and the address of the trap.
    unsafe { asm!("csrr {}, mcause", "csrr {}, mepc", out(reg) cause, out(reg) at) };
    println!("trap: cause {cause:#x} at {at:#x}");
    process::exit(1)
}
