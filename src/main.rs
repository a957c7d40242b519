//! The `iroh-hub` program: a hub, a spoke, and what tells their strategies apart, on the command line.

mod program;

#[cfg(test)]
#[path = "fuzz/mod.rs"]
#[allow(
    dead_code,
    unused_macros,
    unused_imports,
    reason = "it has decoders only"
)]
mod fuzz;

fn main() -> std::process::ExitCode {
    program::main()
}
