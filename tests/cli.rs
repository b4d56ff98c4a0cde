//! The words of every command: help, success, failure and exit codes, as in `tests/cmd/`.
//!
//! `TRYCMD=overwrite cargo test --test cli` writes down what the commands say now; look at it before you commit it.

#[test]
fn commands_say_what_they_should() {
    trycmd::TestCases::new()
        .env("TIELINE_LOG", "")
        .env("NO_COLOR", "1")
        .case("tests/cmd/*.trycmd")
        .case("tests/cmd/*.toml");
}
