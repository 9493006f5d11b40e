//! `millgate audit verify`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use crate::args::{AuditCommand, AuditVerifyArgs};
use crate::{folders, storage};

pub fn run(command: AuditCommand) -> Result<ExitCode> {
    let AuditCommand::Verify(args) = command;
    verify(args)
}

fn verify(args: AuditVerifyArgs) -> Result<ExitCode> {
    let storage = storage::Storage::open(&folders::data(args.data.data))?;
    match storage.verify_audit()? {
        Ok(report) => {
            if args.json {
                let value =
                    json!({ "valid": true, "entries": report.entries, "head": report.head });
                println!("{}", serde_json::to_string_pretty(&value)?);
            } else {
                println!("the audit log is whole: {} entries", report.entries);
                if let Some(head) = report.head {
                    println!(
                        "  head {} over {} entries, signed by {}",
                        head.root, head.size, head.key
                    );
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            if args.json {
                let value = json!({ "valid": false, "error": error.to_string() });
                println!("{}", serde_json::to_string_pretty(&value)?);
            } else {
                println!("the audit log was tampered with or damaged: {error}");
            }
            Ok(ExitCode::FAILURE)
        }
    }
}
