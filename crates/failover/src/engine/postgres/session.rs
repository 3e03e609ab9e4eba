//! Speaking to the server, over its Unix socket, as superuser.

use std::rc::Rc;
use std::time::Duration;

use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

use super::{PostgresError, Result, STATEMENT, Settings};

/// A connection.
#[derive(Debug, Clone)]
pub(super) struct Session(Rc<Client>);

impl Session {
    pub(super) async fn connect(settings: &Settings) -> Result<Self> {
        let mut config = Config::new();
        config.host_path(&settings.socket).port(settings.port).user("postgres").password(&settings.password);
        config.dbname("postgres").application_name("mainstay").connect_timeout(STATEMENT);
        // What the steward asks for must not itself wait for replicas, nor for long.
        config.options("-c synchronous_commit=local -c statement_timeout=60s");
        let failed = |source| PostgresError::Connect { socket: settings.socket.clone(), source };
        let connected = tokio::time::timeout(STATEMENT, config.connect(NoTls)).await;
        let (client, connection) =
            connected.map_err(|_| PostgresError::Deadline(STATEMENT, "a connection"))?.map_err(failed)?;
        // Its end shows in `open`.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self(Rc::new(client)))
    }

    pub(super) fn open(&self) -> bool {
        !self.0.is_closed()
    }

    /// All rows of a statement, as text.
    pub(super) async fn rows(&self, statement: &str) -> Result<Vec<Vec<String>>> {
        self.rows_within(statement, STATEMENT).await
    }

    async fn rows_within(&self, statement: &str, limit: Duration) -> Result<Vec<Vec<String>>> {
        let answer = tokio::time::timeout(limit, self.0.simple_query(statement)).await;
        let answer = answer.map_err(|_| PostgresError::Deadline(limit, "a statement of the steward"))?;
        let refused = |source| PostgresError::Statement { statement: statement.to_owned(), source };
        let rows = answer.map_err(refused)?.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The one row of a statement.
    pub(super) async fn row(&self, statement: &str) -> Result<Vec<String>> {
        let first = self.rows(statement).await?.into_iter().next();
        first.ok_or_else(|| PostgresError::Answer(statement.to_owned()))
    }

    pub(super) async fn run(&self, statement: &str) -> Result<()> {
        self.rows(statement).await.map(drop)
    }

    pub(super) async fn run_within(&self, statement: &str, limit: Duration) -> Result<()> {
        self.rows_within(statement, limit).await.map(drop)
    }
}
