/**
 * iommufd: include/uapi/linux/iommufd.h (Linux 6.2). Each struct begins with its own size; the kernel accepts a longer
 * one than it knows if the rest is 0. Members are u32 unless noted.
 */

/** Numbers of the ioctls. */
export const IOCTL = {
  IOMMU_DESTROY: 0x3b80,
  IOMMU_IOAS_ALLOC: 0x3b81,
  IOMMU_IOAS_ALLOW_IOVAS: 0x3b82,
  IOMMU_IOAS_COPY: 0x3b83,
  IOMMU_IOAS_IOVA_RANGES: 0x3b84,
  IOMMU_IOAS_MAP: 0x3b85,
  IOMMU_IOAS_UNMAP: 0x3b86,
  IOMMU_OPTION: 0x3b87,
  IOMMU_VFIO_IOAS: 0x3b88,
  IOMMU_HWPT_ALLOC: 0x3b89,
  IOMMU_GET_HW_INFO: 0x3b8a,
  IOMMU_HWPT_SET_DIRTY_TRACKING: 0x3b8b,
  IOMMU_HWPT_GET_DIRTY_BITMAP: 0x3b8c,
  /** Linux 6.11. */
  IOMMU_FAULT_QUEUE_ALLOC: 0x3b8e,
  /** Linux 6.13. */
  IOMMU_IOAS_MAP_FILE: 0x3b8f,
  /** Linux 6.14. */
  IOMMU_IOAS_CHANGE_PROCESS: 0x3b92,
} as const;

export const IOMMU_DESTROY = { sizeof: 8, size: 0, id: 4 } as const;

// I/O address spaces.

export const IOMMU_IOAS_ALLOC = { sizeof: 12, size: 0, flags: 4, out_ioas_id: 8 } as const;

/** Both u64; `last` is inclusive. */
export const IOMMU_IOVA_RANGE = { sizeof: 16, start: 0, last: 8 } as const;
/**
 * allowed_iovas is the address (u64) of `num_iovas` {@link IOMMU_IOVA_RANGE}, out_iova_alignment u64. On EMSGSIZE the
 * kernel writes the needed number to `num_iovas`.
 */
export const IOMMU_IOAS_IOVA_RANGES = {
  sizeof: 32,
  size: 0,
  ioas_id: 4,
  num_iovas: 8,
  allowed_iovas: 16,
  out_iova_alignment: 24,
} as const;
/** allowed_iovas is the address (u64) of `num_iovas` {@link IOMMU_IOVA_RANGE}. */
export const IOMMU_IOAS_ALLOW_IOVAS = { sizeof: 24, size: 0, ioas_id: 4, num_iovas: 8, allowed_iovas: 16 } as const;

/** user_va, length and iova u64. */
export const IOMMU_IOAS_MAP = {
  sizeof: 40,
  size: 0,
  flags: 4,
  ioas_id: 8,
  user_va: 16,
  length: 24,
  iova: 32,
} as const;
/** fd s32; start (in bytes into the file), length and iova u64. */
export const IOMMU_IOAS_MAP_FILE = {
  sizeof: 40,
  size: 0,
  flags: 4,
  ioas_id: 8,
  fd: 12,
  start: 16,
  length: 24,
  iova: 32,
} as const;
/** length, dst_iova and src_iova u64. */
export const IOMMU_IOAS_COPY = {
  sizeof: 40,
  size: 0,
  flags: 4,
  dst_ioas_id: 8,
  src_ioas_id: 12,
  length: 16,
  dst_iova: 24,
  src_iova: 32,
} as const;
/** Flags of the three above. */
export const IOMMU_IOAS_MAP_FIXED_IOVA = 0x1;
export const IOMMU_IOAS_MAP_WRITEABLE = 0x2;
export const IOMMU_IOAS_MAP_READABLE = 0x4;
/**
 * iova and length u64; iova 0 with a length of all ones unmaps everything. On return `length` is the bytes unmapped.
 */
export const IOMMU_IOAS_UNMAP = { sizeof: 24, size: 0, ioas_id: 4, iova: 8, length: 16 } as const;
/**
 * Linux 6.14: from now on the pinned pages of all mappings of this iommufd count for the process that calls, which has got a
 * descriptor of it from the process that made them. Devices stay attached. The kernel changes nothing when it refuses. Seen on
 * Linux 7.3:
 *
 * - EINVAL if any mapping was made by its address ({@link IOMMU_IOAS_MAP}); those of {@link IOMMU_IOAS_MAP_FILE} are accepted.
 * - VmPin moves from one process to the other, and back if the first one calls. This needs no privilege.
 * - ENOMEM if the limit on locked memory has no room for the pages once more: those of the old process still count for their
 *   user meanwhile (5 MiB are refused at a limit of 8 MiB, and accepted at 12 MiB).
 * - When root mapped: VmPin stays with the process that did, even after the other one ended and all was unmapped.
 */
export const IOMMU_IOAS_CHANGE_PROCESS = { sizeof: 8, size: 0 } as const;

/** op u16, val64 u64. */
export const IOMMU_OPTION = { sizeof: 24, size: 0, option_id: 4, op: 8, object_id: 12, val64: 16 } as const;
/** Locked memory is counted: 0 per user, 1 per process (needs CAP_SYS_RESOURCE). */
export const IOMMU_OPTION_RLIMIT_MODE = 0;
export const IOMMU_OPTION_HUGE_PAGES = 1;
export const IOMMU_OPTION_OP_SET = 0;
export const IOMMU_OPTION_OP_GET = 1;

/** op u16. */
export const IOMMU_VFIO_IOAS = { sizeof: 12, size: 0, ioas_id: 4, op: 8 } as const;
export const IOMMU_VFIO_IOAS_GET = 0;
export const IOMMU_VFIO_IOAS_SET = 1;
export const IOMMU_VFIO_IOAS_CLEAR = 2;

// Hardware page tables.

/** data_uptr u64. */
export const IOMMU_HWPT_ALLOC = {
  sizeof: 48,
  size: 0,
  flags: 4,
  dev_id: 8,
  pt_id: 12,
  out_hwpt_id: 16,
  data_type: 24,
  data_len: 28,
  data_uptr: 32,
  fault_id: 40,
} as const;
export const IOMMU_HWPT_ALLOC_NEST_PARENT = 0x1;
export const IOMMU_HWPT_ALLOC_DIRTY_TRACKING = 0x2;
export const IOMMU_HWPT_FAULT_ID_VALID = 0x4;
export const IOMMU_HWPT_ALLOC_PASID = 0x8;
export const IOMMU_HWPT_DATA_NONE = 0;

/** data_uptr and out_capabilities u64, out_max_pasid_log2 u8. */
export const IOMMU_HW_INFO = {
  sizeof: 40,
  size: 0,
  flags: 4,
  dev_id: 8,
  data_len: 12,
  data_uptr: 16,
  out_data_type: 24,
  out_max_pasid_log2: 28,
  out_capabilities: 32,
} as const;
export const IOMMU_HW_INFO_TYPE_NONE = 0;
export const IOMMU_HW_INFO_TYPE_INTEL_VTD = 1;
export const IOMMU_HW_INFO_TYPE_ARM_SMMUV3 = 2;
export const IOMMU_HW_INFO_TYPE_AMD = 4;
export const IOMMU_HW_CAP_DIRTY_TRACKING = 0x1;

export const IOMMU_HWPT_SET_DIRTY_TRACKING = { sizeof: 16, size: 0, flags: 4, hwpt_id: 8 } as const;
export const IOMMU_HWPT_DIRTY_TRACKING_ENABLE = 0x1;
/** iova, length, page_size and data u64; data is the address of the bits. */
export const IOMMU_HWPT_GET_DIRTY_BITMAP = {
  sizeof: 48,
  size: 0,
  hwpt_id: 4,
  flags: 8,
  iova: 16,
  length: 24,
  page_size: 32,
  data: 40,
} as const;
export const IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR = 0x1;

// Page faults of devices.

/** out_fault_fd is a descriptor: read it for {@link IOMMU_HWPT_PGFAULT}, write {@link IOMMU_HWPT_PAGE_RESPONSE} to it. */
export const IOMMU_FAULT_ALLOC = { sizeof: 16, size: 0, flags: 4, out_fault_id: 8, out_fault_fd: 12 } as const;
/** addr u64. */
export const IOMMU_HWPT_PGFAULT = {
  sizeof: 40,
  flags: 0,
  dev_id: 4,
  pasid: 8,
  grpid: 12,
  perm: 16,
  addr: 24,
  length: 32,
  cookie: 36,
} as const;
export const IOMMU_PGFAULT_FLAGS_PASID_VALID = 0x1;
export const IOMMU_PGFAULT_FLAGS_LAST_PAGE = 0x2;
export const IOMMU_PGFAULT_PERM_READ = 0x1;
export const IOMMU_PGFAULT_PERM_WRITE = 0x2;
export const IOMMU_PGFAULT_PERM_EXEC = 0x4;
export const IOMMU_PGFAULT_PERM_PRIV = 0x8;
/** `cookie` of the last fault of a group. */
export const IOMMU_HWPT_PAGE_RESPONSE = { sizeof: 8, cookie: 0, code: 4 } as const;
export const IOMMUFD_PAGE_RESP_SUCCESS = 0;
export const IOMMUFD_PAGE_RESP_INVALID = 1;
