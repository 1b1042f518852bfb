use super::Failure;
#[derive(clap::Args)]
pub(crate) struct Args {}
pub(crate) fn run(_: Args) -> Result<(), Failure> {
    Ok(())
}
