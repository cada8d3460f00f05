//! What a program without an operating system needs one of: the code that a panic ends in. None is known, and so this
//! says nothing; a program that wants to know brings its own, and leaves the feature `panic-handler` out.

#[panic_handler]
fn stop(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
