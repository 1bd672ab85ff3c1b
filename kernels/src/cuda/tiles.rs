//! Matrices of which kernels have boxes brought to them (`cuda/pairs.cuh`), as CUDA's driver describes them to a GPU of
//! compute capability 9.0.

#![allow(unsafe_code)]

use super::launch::Matrix;
use cudarc::driver::result::DriverError;
use cudarc::driver::sys;
use std::ffi::c_void;

/// Bytes that a box is wide: a row of an operand of the matrix units.
const WIDTH: u32 = 128;

/// Describes a matrix by its bytes: boxes lie in shared memory as `cuda/wgmma.cuh` says, and what is beyond the matrix is
/// zeros.
pub(super) fn describe(matrix: &Matrix, map: &mut sys::CUtensorMap) -> Result<(), DriverError> {
    let (bytes, stride) = ([matrix.line as u64, matrix.rows as u64], [matrix.line as u64]);
    let (in_box, steps) = ([WIDTH, matrix.box_rows as u32], [1, 1]);
    // SAFETY: writes the map, and reads arrays of as many numbers as there are sides; the address is only written down.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            map,
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            bytes.len() as u32,
            matrix.address as *mut c_void,
            bytes.as_ptr(),
            stride.as_ptr(),
            in_box.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
}
