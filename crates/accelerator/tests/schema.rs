//! The JSON Schema against the reader: the same keys, ranges and names.

use accelerator::{Machine, presets, schema};
use serde_json::Value;
use toml::{Table, Value as Toml};

const STATIONARY: &str = "base = \"paper-8x8-ws\"\n";

/// Every number of the schema with its path.
fn numbers(schema: &Value, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, f64, f64)>) {
    if let (Some(min), Some(max)) = (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
        found.push((path.clone(), min, max));
    }
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        path.push(key.clone());
        numbers(inner, path, found);
        path.pop();
    }
}

/// A machine file with one number set.
fn with(path: &[String], number: Toml) -> String {
    let mut file: Table = STATIONARY.parse().expect("a base");
    if path.iter().any(|key| key == "banks") {
        let banks: Table = "[dram.banks]\npreset = \"ddr4-2400\""
            .parse()
            .expect("banks");
        file.extend(banks);
    }
    let (last, tables) = path.split_last().expect("a key");
    let mut table = &mut file;
    for key in tables {
        let entry = table
            .entry(key.clone())
            .or_insert_with(|| Toml::Table(Table::new()));
        table = entry.as_table_mut().expect("a table");
    }
    table.insert(last.clone(), number);
    file.to_string()
}

#[test]
fn ranges_are_those_of_the_reader() {
    let mut found = Vec::new();
    numbers(&schema(), &mut Vec::new(), &mut found);
    assert!(found.len() > 40, "{} numbers", found.len());
    for (path, min, max) in found {
        let key = path.last().expect("a key");
        let number = |value: f64| {
            if key.ends_with("_pj") {
                Toml::Float(value)
            } else {
                Toml::Integer(value as i64)
            }
        };
        for outside in [min - 1.0, max + 1.0] {
            let error = Machine::from_toml(&with(&path, number(outside)))
                .expect_err("outside the schema's range")
                .to_string();
            let range = format!("{key} = {outside}: must be ");
            assert!(error.contains(&range), "{path:?}: {error}");
        }
        for inside in [min, max] {
            // Other rules may refuse it, the range may not.
            if let Err(error) = Machine::from_toml(&with(&path, number(inside))) {
                let range = format!("{key} = {inside}: must be {min} to ");
                assert!(!error.to_string().contains(&range), "{path:?}: {error}");
            }
        }
    }
}

#[test]
fn names_are_those_of_the_reader() {
    let schema = schema();
    for path in [
        ["array", "dataflow"],
        ["accumulator", "overflow"],
        ["post", "rounding"],
        ["post", "depthwise"],
    ] {
        let [table, key] = path;
        let property = &schema["properties"][table]["properties"][key];
        let names = words(property);
        assert!(names.len() > 1, "{property}");
        let path = path.map(str::to_owned);
        let error = Machine::from_toml(&with(&path, Toml::String("nothing".to_owned())))
            .expect_err("no such name")
            .to_string();
        assert_eq!(error.matches('`').count(), 2 * (names.len() + 1), "{error}");
        for name in names {
            assert!(error.contains(&format!("`{name}`")), "{name}: {error}");
        }
    }
}

/// The words that a property may be.
fn words(property: &Value) -> Vec<&str> {
    let plain = property["enum"].as_array().into_iter().flatten();
    let documented = property["oneOf"].as_array().into_iter().flatten();
    plain
        .chain(documented.map(|variant| &variant["const"]))
        .filter_map(Value::as_str)
        .collect()
}

#[test]
fn presets_fit_the_schema() {
    let schema = schema();
    for preset in presets::PRESETS {
        let file: Table = preset.text.parse().expect("a preset");
        fits(&file, &schema, preset.name);
        if !file.contains_key("base") {
            has_required(&file, &schema["else"], preset.name);
        }
    }
    // And the schema asks for what the reader asks for.
    let required = &schema["else"];
    assert_eq!(
        required["required"].as_array().map(Vec::len),
        Some(8),
        "{required}"
    );
    assert!(required["properties"]["array"]["required"].is_array());
}

fn fits(table: &Table, schema: &Value, place: &str) {
    assert_eq!(schema["additionalProperties"], false, "{place}");
    for (key, value) in table {
        let property = &schema["properties"][key];
        assert!(property.is_object(), "{place}: {key} is not in the schema");
        if let Toml::Table(inner) = value {
            fits(inner, property, &format!("{place}.{key}"));
        }
    }
}

fn has_required(table: &Table, required: &Value, place: &str) {
    for key in required["required"].as_array().into_iter().flatten() {
        let key = key.as_str().expect("a key");
        assert!(table.contains_key(key), "{place}: {key}");
    }
    for (key, inner) in required["properties"].as_object().into_iter().flatten() {
        if let Some(Toml::Table(table)) = table.get(key) {
            has_required(table, inner, &format!("{place}.{key}"));
        }
    }
}
