//! `millgate plugin lock` and `millgate plugin update`: what would change is shown, and then the
//! operator is asked.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::place;
use crate::args::{ConfigArgs, ConsentArgs, PluginLockArgs, PluginUpdateArgs};
use crate::depot::{self, Plan, Wish};
use crate::open;

pub fn lock(args: PluginLockArgs) -> Result<ExitCode> {
    let wish = Wish {
        only: args.name,
        allow_downgrade: args.consent.allow_downgrade,
        ..Wish::default()
    };
    bring_up(args.place, &wish, &args.consent)
}

pub fn update(args: PluginUpdateArgs) -> Result<ExitCode> {
    let wish = Wish {
        only: args.name,
        newest: true,
        to: args.to,
        allow_downgrade: args.consent.allow_downgrade,
    };
    bring_up(args.place, &wish, &args.consent)
}

fn bring_up(place: ConfigArgs, wish: &Wish, consent: &ConsentArgs) -> Result<ExitCode> {
    let setup = place::setup(place);
    let sandbox = open::sandbox(&setup.data)?;
    let (text, config) = setup.read(&sandbox)?;
    let plan = Plan::of(&config, &setup.config, &setup.environment(), &sandbox, wish)?;
    for line in plan.lines.iter().chain(&plan.notes) {
        println!("{line}");
    }
    let lock = depot::lock_path(&setup.config);
    if !plan.changed {
        println!("{} is up to date", lock.display());
        return Ok(ExitCode::SUCCESS);
    }
    let mut written = lock.display().to_string();
    if !plan.moves.is_empty() {
        written = format!("{written} and {}", setup.config.display());
    }
    if plan.ask && !consent.yes && !agreed(&format!("Write this to {written}?"))? {
        println!("nothing was written");
        return Ok(ExitCode::FAILURE);
    }
    plan.lock.write(&lock)?;
    if !plan.moves.is_empty() {
        depot::replace(&setup.config, &depot::relocate(&text, &plan.moves)?)?;
    }
    println!("{written} is written; a running server takes it at its next reload (SIGHUP)");
    Ok(ExitCode::SUCCESS)
}

/// Asks on the terminal. Without one nobody can say yes.
pub fn agreed(question: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!(
            "nothing was written: there is no terminal to ask on; look at the lines above, and say --yes"
        );
    }
    print!("{question} [y/N] ");
    std::io::stdout().flush()?;
    let mut line = String::new();
    std::io::stdin()
        .read_line(&mut line)
        .context("the answer cannot be read")?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
