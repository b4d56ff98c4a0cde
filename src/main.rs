//! The `tieline` command: see [`tieline::cli`].

use tieline::sys::memory::Wiping;

#[global_allocator]
static MEMORY: Wiping = Wiping;

fn main() -> std::process::ExitCode {
    tieline::cli::main()
}
