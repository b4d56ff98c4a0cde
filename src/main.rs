//! The `tieline` command: see [`tieline::cli`].
fn main() -> std::process::ExitCode {
    tieline::cli::main()
}
