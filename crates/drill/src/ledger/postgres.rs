//! A ledger of rows in PostgreSQL, over its own protocol (<https://www.postgresql.org/docs/current/protocol.html>).
//!
//! One table, one row for each key, one statement for each operation, committed by itself. A connection for every operation, as
//! clients without a pool do: after a failover the next one reaches the new primary.
//!
//! | what the server says to a write | means |
//! |---|---|
//! | the command's tag | done: committed, on as many replicas as the server waits for |
//! | an error of any class but those below | refused: the transaction is rolled back |
//! | classes 08, 57, XX and 40003, or the connection ends | unknown: it may have been committed before the server was stopped |
//!
//! Classes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
//!
//! Deliberately absent: TLS to the database; transactions of several rows; MySQL's protocol.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::Ledger;
use super::history::Ending;

/// Rows in a PostgreSQL.
#[derive(Debug, Clone)]
pub struct PostgresRows {
    /// At least one; client *n* goes to address *n* modulo their number.
    pub addresses: Vec<SocketAddr>,
    /// The role.
    pub user: String,
    /// Its password; empty where the server asks for none.
    pub password: String,
    /// The database.
    pub database: String,
    /// The table, which is made and dropped again: letters, digits and `_`.
    pub table: String,
    /// How long one operation may take.
    pub timeout: Duration,
}

/// What became of a statement.
enum Answer {
    /// Done, with the first column of the first row if there is one.
    Done(Option<String>),
    /// The server said no, and nothing has changed.
    Refused(String),
    /// Nobody knows.
    Unknown(String),
}

impl Ledger for PostgresRows {
    fn shown(&self) -> String {
        let address = self.addresses.first().map(ToString::to_string).unwrap_or_default();
        format!("PostgreSQL rows in {}.{} at {address}", self.database, self.table)
    }

    fn write(&self, client: u32, key: u64, value: u64) -> BoxFuture<'_, Ending> {
        let table = &self.table;
        let statement = format!(
            "INSERT INTO {table} (key, value) VALUES ({key}, {value}) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        );
        Box::pin(async move {
            match self.run(client, &statement).await {
                Answer::Done(_) => Ending::Done,
                Answer::Refused(_) => Ending::Refused,
                Answer::Unknown(_) => Ending::Unknown,
            }
        })
    }

    fn read(&self, client: u32, key: u64) -> BoxFuture<'_, Option<Option<u64>>> {
        let statement = format!("SELECT value FROM {} WHERE key = {key}", self.table);
        Box::pin(async move {
            match self.run(client, &statement).await {
                Answer::Done(None) => Some(None),
                Answer::Done(Some(text)) => text.parse().ok().map(Some),
                Answer::Refused(_) | Answer::Unknown(_) => None,
            }
        })
    }

    fn prepare(&self) -> BoxFuture<'_, Result<(), String>> {
        let statement =
            format!("CREATE TABLE IF NOT EXISTS {} (key bigint PRIMARY KEY, value bigint NOT NULL)", self.table);
        Box::pin(async move {
            match self.run(0, &statement).await {
                Answer::Done(_) => Ok(()),
                Answer::Refused(reason) | Answer::Unknown(reason) => {
                    Err(format!("cannot make table {} in database {}: {reason}", self.table, self.database))
                }
            }
        })
    }

    fn clear(&self) -> BoxFuture<'_, ()> {
        let statement = format!("DROP TABLE IF EXISTS {}", self.table);
        Box::pin(async move {
            if let Answer::Refused(reason) | Answer::Unknown(reason) = self.run(0, &statement).await {
                tracing::warn!(table = self.table, reason, "the ledger's table is left");
            }
        })
    }
}

impl PostgresRows {
    /// One statement over a connection of its own.
    async fn run(&self, client: u32, statement: &str) -> Answer {
        let connecting = timeout(self.timeout, self.connect(client)).await;
        let client = match connecting {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Answer::Refused(told(&error)),
            Err(_) => return Answer::Refused("no connection in time".to_owned()),
        };
        match timeout(self.timeout, client.simple_query(statement)).await {
            Ok(Ok(messages)) => Answer::Done(messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })),
            Ok(Err(error)) if error.code().is_some_and(is_certain) => Answer::Refused(told(&error)),
            Ok(Err(error)) => Answer::Unknown(told(&error)),
            Err(_) => Answer::Unknown("no answer in time".to_owned()),
        }
    }

    async fn connect(&self, client: u32) -> Result<Client, tokio_postgres::Error> {
        let mut config = Config::new();
        if let Some(address) = self.addresses.get(client as usize % self.addresses.len().max(1)) {
            config.host(address.ip().to_string()).port(address.port());
        }
        config.user(&self.user).dbname(&self.database).application_name("mainstay-drill");
        if !self.password.is_empty() {
            config.password(&self.password);
        }
        let (client, connection) = config.connect(NoTls).await?;
        // Ends with its client.
        tokio::spawn(connection);
        Ok(client)
    }
}

/// Whether an error means that the statement has changed nothing.
fn is_certain(state: &SqlState) -> bool {
    let code = state.code();
    !["08", "57", "XX"].iter().any(|class| code.starts_with(class))
        && *state != SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN
}

/// What the server said, else what the connection did.
fn told(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |said| said.message().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_stopped_may_have_committed() {
        for (state, certain) in [
            (SqlState::READ_ONLY_SQL_TRANSACTION, true),
            (SqlState::UNIQUE_VIOLATION, true),
            (SqlState::T_R_SERIALIZATION_FAILURE, true),
            (SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN, false),
            (SqlState::ADMIN_SHUTDOWN, false),
            (SqlState::CRASH_SHUTDOWN, false),
            (SqlState::CONNECTION_FAILURE, false),
        ] {
            assert_eq!(is_certain(&state), certain, "{state:?}");
        }
    }
}
