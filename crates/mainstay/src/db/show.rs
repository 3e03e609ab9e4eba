//! Tables of databases and members.

use mainstay_failover::database::Database;
use serde_json::{Value, json};

use crate::AnyError;
use crate::cli::Output;

/// All databases, one line each.
pub fn list(databases: &[Database], output: Output) -> Result<(), AnyError> {
    if output == Output::Json {
        let all: Vec<_> = databases.iter().map(summary).collect();
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(());
    }
    let rows = databases.iter().map(|database| {
        let status = &database.status;
        let name = database.metadata.name.clone().unwrap_or_default();
        let cells = ["primary", "ready", "lag", "state"].map(|key| cell(&status[key]));
        [vec![name, database.spec.engine.as_str().to_owned()], cells.to_vec()].concat()
    });
    print!("{}", table(&["NAME", "ENGINE", "PRIMARY", "READY", "LAG", "STATE"], rows.collect()));
    Ok(())
}

/// One database; answers whether it is well.
pub fn status(database: &Database, output: Output) -> Result<bool, AnyError> {
    let status = &database.status;
    let well = matches!(status["state"].as_str(), Some("Healthy" | "Paused"));
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&summary(database))?);
        return Ok(well);
    }
    let name = database.metadata.name.as_deref().unwrap_or_default();
    let engine = database.spec.engine.as_str();
    println!(
        "{name}: {engine}, {}, epoch {}: {}",
        cell(&status["state"]),
        cell(&status["epoch"]),
        super::message(database)
    );
    let members = status["members"].as_array().into_iter().flatten();
    let keys = ["name", "role", "state", "lag", "position", "node", "message"];
    let rows = members.map(|member| keys.map(|key| cell(&member[key])).to_vec()).collect();
    print!("{}", table(&["MEMBER", "ROLE", "STATE", "LAG", "POSITION", "NODE", "MESSAGE"], rows));
    Ok(well)
}

/// The last primaries.
pub fn history(database: &Database, output: Output) -> Result<(), AnyError> {
    let chapters = database.status["history"].as_array().cloned().unwrap_or_default();
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&chapters)?);
        return Ok(());
    }
    let rows = chapters.iter().map(|it| ["epoch", "primary", "from"].map(|key| cell(&it[key])).to_vec()).collect();
    print!("{}", table(&["EPOCH", "PRIMARY", "FROM"], rows));
    Ok(())
}

fn summary(database: &Database) -> Value {
    json!({"name": database.metadata.name, "namespace": database.metadata.namespace, "engine": database.spec.engine, "status": database.status})
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Columns as wide as their widest cell, three spaces apart, as `kubectl` has them.
fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let all: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let width =
        |column: usize| all.iter().filter_map(|row| row.get(column)).map(|it| it.chars().count()).max().unwrap_or(0);
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:<width$}", width = width(column)));
        format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end())
    };
    all.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["shop".to_owned(), "-".to_owned()], vec!["a".to_owned(), "bc".to_owned()]];
        assert_eq!(table(&["NAME", "X"], rows), "NAME   X\nshop   -\na      bc\n");
    }
}
