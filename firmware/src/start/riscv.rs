//! A RISC-V processor in machine mode, entered where the image begins: QEMU's virt machine without firmware.

use core::arch::{asm, global_asm};

use semihosting::{println, process};

global_asm!(
    r#"
    .section .text.start, "ax"
    .global _start
_start:
    la      t0, trap
    csrw    mtvec, t0
    // Floating point traps unless its registers are in use; where there are none this changes nothing.
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

    // The lowest bits of the trap's address are a mode.
    .balign 4
trap:
    tail    {fault}
"#,
    main = sym crate::main,
    fault = sym fault,
);

extern "C" fn fault() -> ! {
    let (cause, at): (usize, usize);
    // SAFETY: registers that say what happened and where, read only.
    unsafe { asm!("csrr {}, mcause", "csrr {}, mepc", out(reg) cause, out(reg) at) };
    println!("trap: cause {cause:#x} at {at:#x}");
    process::exit(1)
}
