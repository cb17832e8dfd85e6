//! The size that a capacity range means.

use crate::error::RequestError;
use proto::csi::CapacityRange;

/// Sizes of volumes are multiples of it, in bytes.
pub const VOLUME_UNIT: u64 = 1 << 20;

/// Size of a volume when the caller does not say, in bytes.
pub const DEFAULT_VOLUME: u64 = 1 << 30;

/// The size in bytes that `range` means: the least multiple of [`VOLUME_UNIT`] that satisfies it and is
/// at least `least`; without any wish [`DEFAULT_VOLUME`], or less if the limit says so.
///
/// # Errors
/// INVALID_ARGUMENT for negative numbers, OUT_OF_RANGE if no size fits.
pub fn volume_size(range: Option<&CapacityRange>, least: u64) -> Result<u64, RequestError> {
    let (required, limit) = match range {
        None => (0, 0),
        Some(range) => (
            bytes("capacity_range.required_bytes", range.required_bytes)?,
            bytes("capacity_range.limit_bytes", range.limit_bytes)?,
        ),
    };
    let out_of_range = |reason: String| Err(RequestError::OutOfRange { reason });
    if limit != 0 && required > limit {
        return out_of_range(format!("required_bytes {required} is above limit_bytes {limit}"));
    }
    let largest = if limit == 0 { types::MAX_VOLUME } else { limit.min(types::MAX_VOLUME) };
    if required > types::MAX_VOLUME {
        let max = types::MAX_VOLUME;
        return out_of_range(format!("required_bytes {required} is above the maximum of {max}"));
    }
    let wanted = if required == 0 { DEFAULT_VOLUME.min(largest) } else { required };
    let size = if required == 0 {
        (wanted / VOLUME_UNIT * VOLUME_UNIT).max(least)
    } else {
        wanted.next_multiple_of(VOLUME_UNIT).max(least)
    };
    if size > largest {
        return out_of_range(format!(
            "sizes are multiples of {VOLUME_UNIT} bytes and at least {least}; the least one that \
             fits is {size}, above limit_bytes {largest}"
        ));
    }
    Ok(size)
}

fn bytes(field: &'static str, value: i64) -> Result<u64, RequestError> {
    u64::try_from(value)
        .map_err(|_| RequestError::invalid(field, &value.to_string(), "0 (not set) or more bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    const M: i64 = 1 << 20;
    const LEAST: u64 = 16 << 20;

    #[test]
    fn a_range_means_one_size() {
        // required, limit -> size in MiB
        let table: &[(i64, i64, i64)] = &[
            (0, 0, 1024),
            (1, 0, 16),
            (16 * M, 0, 16),
            (16 * M + 1, 0, 17),
            (5 * M, 16 * M, 16),
            (1024 * M, 1024 * M, 1024),
            (0, 2048 * M, 1024),
            (0, 100 * M, 100),
            (0, 100 * M + 5, 100),
            (0, 16 * M, 16),
            (16 << 40, 0, 16 << 20),
        ];
        for &(required_bytes, limit_bytes, mib) in table {
            let range = CapacityRange { required_bytes, limit_bytes };
            assert_eq!(volume_size(Some(&range), LEAST), Ok(mib as u64 * VOLUME_UNIT), "{range:?}");
        }
        assert_eq!(volume_size(None, LEAST), Ok(DEFAULT_VOLUME));
    }

    #[test]
    fn a_range_that_nothing_fits_is_refused() {
        let table: &[(i64, i64, Code)] = &[
            (-1, 0, Code::InvalidArgument),
            (0, i64::MIN, Code::InvalidArgument),
            (20 * M, 19 * M, Code::OutOfRange),
            (20 * M + 1, 20 * M + 2, Code::OutOfRange),
            (1, 15 * M, Code::OutOfRange),
            (0, 15 * M, Code::OutOfRange),
            ((16 << 40) + 1, 0, Code::OutOfRange),
            (i64::MAX, i64::MAX, Code::OutOfRange),
        ];
        for &(required_bytes, limit_bytes, code) in table {
            let range = CapacityRange { required_bytes, limit_bytes };
            let found = volume_size(Some(&range), LEAST).map_err(|e| e.code());
            assert_eq!(found, Err(code), "{range:?}");
        }
    }
}
