//! The `iroh-hub` program: a hub, a spoke, and what tells their strategies apart, on the command line.

mod program;

fn main() -> std::process::ExitCode {
    program::main()
}
