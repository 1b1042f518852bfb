//! `hooksieve tokens`: who may call, and what for.

use super::client::Remote;
use super::{Failure, style};
use hooksieve::admin::{NewTokenBody, Revoked, TokenView};
use hooksieve::registry::Scope;
use reqwest::Method;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    remote: Remote,
}

#[derive(clap::Subcommand)]
enum Command {
    /// List a tenant's tokens, or without one the operators'
    List {
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
    },
    /// Make one, and show it this once
    Make {
        /// Whose it is; left out for an operator's
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        #[arg(long, value_enum)]
        scope: ScopeWord,
        /// What it is for
        #[arg(long, value_name = "TEXT")]
        label: String,
        /// How many days it is good for [default: until it is revoked]
        #[arg(long, value_name = "DAYS")]
        days: Option<u32>,
    },
    /// Make one worthless
    Revoke {
        #[arg(value_name = "ID")]
        id: String,
    },
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ScopeWord {
    /// Send events to sources with `access_tokens = true`, and nothing else
    IngestOnly,
    /// See what its tenant has
    ReadOnly,
    /// Upload modules and change rules
    Author,
    /// Make its tenant's tokens, test channels
    TenantAdmin,
    /// Everything, of every tenant
    Operator,
}

impl From<ScopeWord> for Scope {
    fn from(word: ScopeWord) -> Self {
        match word {
            ScopeWord::IngestOnly => Scope::IngestOnly,
            ScopeWord::ReadOnly => Scope::ReadOnly,
            ScopeWord::Author => Scope::Author,
            ScopeWord::TenantAdmin => Scope::TenantAdmin,
            ScopeWord::Operator => Scope::Operator,
        }
    }
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let Args { command, remote } = args;
    match command {
        Command::List { tenant } => {
            let query = tenant.map(|it| format!("?tenant={it}")).unwrap_or_default();
            let tokens: Vec<TokenView> = remote.call(Method::GET, &format!("/v1/tokens{query}"))?;
            if remote.json {
                anstream::println!("{}", serde_json::json!(tokens));
                return Ok(());
            }
            if tokens.is_empty() {
                anstream::println!("There is no token.");
                return Ok(());
            }
            let mut table = style::table(&["id", "scope", "tenant", "label", "made", "expires"]);
            for token in &tokens {
                table.add_row([
                    token.id.as_str(),
                    &token.scope.to_string(),
                    token.tenant.as_ref().map_or("", |it| it.as_str()),
                    &style::clean(&token.label),
                    &token.created,
                    token.expires.as_deref().unwrap_or("never"),
                ]);
            }
            anstream::println!("{table}");
        }
        Command::Make {
            tenant,
            scope,
            label,
            days,
        } => {
            let tenant = tenant.map(|it| it.parse()).transpose();
            let expires = days.map(|days| {
                let hours = jiff::Span::new().hours(i64::from(days) * 24);
                let moment = jiff::Timestamp::now().checked_add(hours);
                moment.map(|it| it.to_string()).map_err(Failure::input)
            });
            let body = NewTokenBody {
                scope: scope.into(),
                tenant: tenant.map_err(Failure::input)?,
                label,
                expires: expires.transpose()?,
            };
            let made: TokenView = remote.send(Method::POST, "/v1/tokens", |it| it.json(&body))?;
            if remote.json {
                anstream::println!("{}", serde_json::json!(made));
                return Ok(());
            }
            // The token alone on standard output, for a pipe.
            anstream::eprintln!("The token {} is shown this once:", made.id);
            anstream::println!("{}", made.token.unwrap_or_default());
        }
        Command::Revoke { id } => {
            let revoked: Revoked = remote.call(Method::DELETE, &format!("/v1/tokens/{id}"))?;
            if remote.json {
                anstream::println!("{}", serde_json::json!(revoked));
            } else {
                anstream::println!("revoked {}", style::clean(&revoked.revoked));
            }
        }
    }
    Ok(())
}
