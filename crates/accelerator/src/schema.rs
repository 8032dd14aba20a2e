//! The JSON Schema of the machine file, for editors.
//!
//! Invariant: what the reader accepts the schema accepts. The schema is looser in one thing only: rules
//! between keys (a power of two, a key of another dataflow) are the reader's.

use crate::{config::File, presets};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The schema, draft 2020-12.
///
/// # Panics
/// Never: the generator makes objects.
pub fn schema() -> Value {
    let settings =
        SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<File>();
    let mut schema = Value::from(schema);
    // With a base nothing is required, without one everything is.
    let required = take_required(&mut schema);
    let root = schema.as_object_mut().expect("a schema of a struct");
    root.insert("title".to_owned(), json!("systole machine"));
    let names: Vec<&str> = presets::PRESETS.iter().map(|preset| preset.name).collect();
    let base = json!({
        "description": "The machine that gives every key that is left out.",
        "type": "string",
        "enum": names,
    });
    if let Some(properties) = root.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("base".to_owned(), base);
    }
    root.insert("if".to_owned(), json!({ "required": ["base"] }));
    root.insert("else".to_owned(), required);
    schema
}

/// Moves every `required` out of a schema of tables, into one that holds nothing else.
fn take_required(schema: &mut Value) -> Value {
    let mut taken = Map::new();
    let Some(table) = schema.as_object_mut() else {
        return Value::Object(taken);
    };
    if let Some(required) = table.remove("required") {
        taken.insert("required".to_owned(), required);
    }
    let mut inside = Map::new();
    if let Some(properties) = table.get_mut("properties").and_then(Value::as_object_mut) {
        for (key, property) in properties {
            let required = take_required(property);
            if required.as_object().is_some_and(|map| !map.is_empty()) {
                inside.insert(key.clone(), required);
            }
        }
    }
    if !inside.is_empty() {
        taken.insert("properties".to_owned(), Value::Object(inside));
    }
    Value::Object(taken)
}
