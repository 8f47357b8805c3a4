//! Any bytes as what stands in our CNI configuration: a line with the further plugins that are asked for,
//! then the file.

use super::*;

/// Entries of others stay in their order, and ours are there once each, in theirs. Merged again it is the
/// same: otherwise each inspection would write the file anew. Returns whether there are others.
fn is_merged(bytes: &[u8]) -> bool {
    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let further: Further = String::from_utf8_lossy(&bytes[..end]).parse().unwrap_or_default();
    let Ok(found) = serde_json::from_slice::<Value>(bytes.get(end + 1..).unwrap_or_default()) else {
        return false;
    };
    let chain =
        Chain { found: Chained::value_variants().to_vec(), further: further.clone(), ..Chain::default() };
    let mut wanted = json!({ "name": "vnetpool" });
    chain.put_into(&mut wanted, json!({ "type": PLUGIN }));

    let written = merged(&wanted, &found);
    let is_wanted = |entry: &&Value| entries(&wanted).iter().any(|one| type_of(one) == type_of(entry));
    let (ours, theirs): (Vec<&Value>, Vec<&Value>) = entries(&written).iter().partition(is_wanted);
    assert_eq!(ours, entries(&wanted).iter().collect::<Vec<_>>());
    let were_theirs = |entry: &&Value| !is_wanted(entry) && !is_ours(type_of(entry), &found);
    assert_eq!(theirs, entries(&found).iter().filter(were_theirs).collect::<Vec<_>>());
    assert_eq!(others(&written, &further), others(&found, &further));
    assert_eq!(merged(&wanted, &written), written);
    !theirs.is_empty()
}

#[test]
fn in_any_configuration_the_entries_of_others_stay_and_ours_are_there_once_in_order() {
    vnetpool_fuzz::search("chain", is_merged);
}
