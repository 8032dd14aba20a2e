//! `systole gemm`: one product, files of points, and points that are wrong.

use crate::common::Workshop;

const COLUMNS: &str = "name,kind,M,N,K,array_rows,array_cols,dataflow,compute_cycles\n";

/// SCALE-Sim v3's formulas, worked out by hand: 9 × 15 × (70 + 8 + 4 - 2) - 1 and so on.
const POINTS: &str = "\
a,conv,70,58,70,8,4,os,10799
b,conv,70,58,70,8,4,ws,11879
c,conv,70,58,70,8,4,is,12311
d,gemm,1,1,1,1,1,os,0
";

#[test]
fn one_product() {
    let text = Workshop::new().succeed("gemm 70 58 70 --json");
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    // 5 × 4 folds of 2R + C + K - 1 cycles.
    assert_eq!(report[0]["cycles"], 20 * (32 + 16 + 70 - 1));
    assert_eq!(report[0]["published_cycles"], serde_json::Value::Null);
}

#[test]
fn published_points() {
    let shop = Workshop::new();
    shop.write("points.csv", format!("{COLUMNS}{POINTS}"));
    let text = shop.succeed("gemm --points points.csv");
    assert!(text.contains("output-stationary   8 × 4"), "{text}");
    assert_eq!(
        shop.succeed("gemm --points points.csv --csv")
            .lines()
            .count(),
        5
    );
}

#[test]
fn a_point_that_differs_is_named() {
    let shop = Workshop::new();
    let wrong = POINTS.replace("11879", "11880");
    shop.write("points.csv", format!("{COLUMNS}{wrong}"));
    let outcome = shop.run("gemm --points points.csv");
    assert_eq!(outcome.code, 1);
    let said = "b M 70 N 58 K 70, weight-stationary 8 × 4: 11879, published 11880";
    assert!(outcome.stdout.contains(said), "{}", outcome.stdout);
    assert!(
        outcome.stderr.contains("1 of 4 points"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn bad_points_are_refused() {
    let shop = Workshop::new();
    shop.refuse("gemm", &["M N K"]);
    shop.refuse("gemm 0 1 1", &["m is 0"]);
    shop.refuse("gemm --points none.csv", &["none.csv"]);
    for (line, says) in [
        ("a,conv,1,1,1,8,4,xs,1", "dataflow \"xs\""),
        ("a,conv,1,1,1,8,999,os,1", "array_cols is 999"),
        ("a,conv,1,1,x,8,4,os,1", "line 2"),
        ("a,conv,1,1,99999999,8,4,os,1", "k is 99999999"),
    ] {
        shop.write("points.csv", format!("{COLUMNS}{line}\n"));
        shop.refuse("gemm --points points.csv", &["points.csv: line 2", says]);
    }
    shop.write("points.csv", COLUMNS);
    shop.refuse("gemm --points points.csv", &["no point in it"]);
}
