//! Who may ask, and how much.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A tenant: whoever shows one of its keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RawTenant {
    /// File with the hashes of its keys, one a line, as `forethought key new` prints them: `sha256:` and 64 hexadecimal
    /// digits. What follows `#` is a comment.
    pub keys_file: Option<String>,
    /// Name of an environment variable that holds such hashes, with blanks or commas between them.
    pub keys_env: Option<String>,
    /// Most requests a minute; as many as come where it is not set.
    pub requests_per_minute: Option<u32>,
    /// Most requests at once after a pause; a sixth of `requests_per_minute` where it is not set, and at least one.
    pub burst: Option<u32>,
    /// Most requests under way at the same time, their answers included; as many as come where it is not set.
    pub concurrency: Option<usize>,
}
