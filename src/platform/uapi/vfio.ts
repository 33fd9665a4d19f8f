/**
 * VFIO: include/uapi/linux/vfio.h. Features and members newer than Linux 5.10 are marked where it matters; the kernel
 * accepts today's `argsz` even if it knows less of the struct.
 */

/** Numbers of the ioctls. Those of the container's drivers (type 1, sPAPR) share numbers with each other and with devices'. */
export const IOCTL = {
  VFIO_GET_API_VERSION: 0x3b64,
  VFIO_CHECK_EXTENSION: 0x3b65,
  VFIO_SET_IOMMU: 0x3b66,

  VFIO_GROUP_GET_STATUS: 0x3b67,
  VFIO_GROUP_SET_CONTAINER: 0x3b68,
  VFIO_GROUP_UNSET_CONTAINER: 0x3b69,
  VFIO_GROUP_GET_DEVICE_FD: 0x3b6a,

  VFIO_DEVICE_GET_INFO: 0x3b6b,
  VFIO_DEVICE_GET_REGION_INFO: 0x3b6c,
  VFIO_DEVICE_GET_IRQ_INFO: 0x3b6d,
  VFIO_DEVICE_SET_IRQS: 0x3b6e,
  VFIO_DEVICE_RESET: 0x3b6f,
  VFIO_DEVICE_GET_PCI_HOT_RESET_INFO: 0x3b70,
  VFIO_DEVICE_PCI_HOT_RESET: 0x3b71,
  VFIO_DEVICE_FEATURE: 0x3b75,
  VFIO_DEVICE_BIND_IOMMUFD: 0x3b76,
  VFIO_DEVICE_ATTACH_IOMMUFD_PT: 0x3b77,
  VFIO_DEVICE_DETACH_IOMMUFD_PT: 0x3b78,

  VFIO_IOMMU_GET_INFO: 0x3b70,
  VFIO_IOMMU_MAP_DMA: 0x3b71,
  VFIO_IOMMU_UNMAP_DMA: 0x3b72,
  VFIO_IOMMU_ENABLE: 0x3b73,
  VFIO_IOMMU_DISABLE: 0x3b74,
  VFIO_IOMMU_DIRTY_PAGES: 0x3b75,

  VFIO_IOMMU_SPAPR_TCE_GET_INFO: 0x3b70,
  VFIO_IOMMU_SPAPR_REGISTER_MEMORY: 0x3b75,
  VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY: 0x3b76,
  VFIO_IOMMU_SPAPR_TCE_CREATE: 0x3b77,
  VFIO_IOMMU_SPAPR_TCE_REMOVE: 0x3b78,
} as const;

export const VFIO_API_VERSION = 0;

/** Arguments of VFIO_CHECK_EXTENSION; those that end in IOMMU also of VFIO_SET_IOMMU. */
export const VFIO_TYPE1_IOMMU = 1;
export const VFIO_SPAPR_TCE_IOMMU = 2;
export const VFIO_TYPE1v2_IOMMU = 3;
export const VFIO_DMA_CC_IOMMU = 4;
export const VFIO_SPAPR_TCE_v2_IOMMU = 7;
export const VFIO_NOIOMMU_IOMMU = 8;
/** The kernel supports VFIO_DMA_UNMAP_FLAG_ALL. */
export const VFIO_UNMAP_ALL = 9;
export const VFIO_UPDATE_VADDR = 10;

/**
 * The header of each capability in a chain: id and version u16, next u32, an offset from the start of the info struct.
 */
export const VFIO_INFO_CAP_HEADER = { sizeof: 8, id: 0, version: 2, next: 4 } as const;

// Groups.

export const VFIO_GROUP_STATUS = { sizeof: 8, argsz: 0, flags: 4 } as const;
export const VFIO_GROUP_FLAGS_VIABLE = 0x1;
export const VFIO_GROUP_FLAGS_CONTAINER_SET = 0x2;

// Devices.

/** All u32. */
export const VFIO_DEVICE_INFO = {
  sizeof: 24,
  argsz: 0,
  flags: 4,
  num_regions: 8,
  num_irqs: 12,
  cap_offset: 16,
} as const;
export const VFIO_DEVICE_FLAGS_RESET = 0x1;
export const VFIO_DEVICE_FLAGS_PCI = 0x2;
export const VFIO_DEVICE_FLAGS_CAPS = 0x80;

/** u32; size and offset u64. */
export const VFIO_REGION_INFO = {
  sizeof: 32,
  argsz: 0,
  flags: 4,
  index: 8,
  cap_offset: 12,
  size: 16,
  offset: 24,
} as const;
export const VFIO_REGION_INFO_FLAG_READ = 0x1;
export const VFIO_REGION_INFO_FLAG_WRITE = 0x2;
export const VFIO_REGION_INFO_FLAG_MMAP = 0x4;
export const VFIO_REGION_INFO_FLAG_CAPS = 0x8;

/** Capability ids in VFIO_REGION_INFO's chain. */
export const REGION_CAP = {
  VFIO_REGION_INFO_CAP_SPARSE_MMAP: 1,
  VFIO_REGION_INFO_CAP_TYPE: 2,
  VFIO_REGION_INFO_CAP_MSIX_MAPPABLE: 3,
} as const;

/** nr_areas u32, then that many {@link VFIO_REGION_SPARSE_MMAP_AREA}. */
export const VFIO_REGION_INFO_CAP_SPARSE_MMAP = { sizeof: 16, header: 0, nr_areas: 8, areas: 16 } as const;
/** Both u64, in bytes into the region. */
export const VFIO_REGION_SPARSE_MMAP_AREA = { sizeof: 16, offset: 0, size: 8 } as const;
/** Both u32. */
export const VFIO_REGION_INFO_CAP_TYPE = { sizeof: 16, header: 0, type: 8, subtype: 12 } as const;

/** All u32. */
export const VFIO_IRQ_INFO = { sizeof: 16, argsz: 0, flags: 4, index: 8, count: 12 } as const;
export const VFIO_IRQ_INFO_EVENTFD = 0x1;
export const VFIO_IRQ_INFO_MASKABLE = 0x2;
export const VFIO_IRQ_INFO_AUTOMASKED = 0x4;
export const VFIO_IRQ_INFO_NORESIZE = 0x8;

/** All u32; data are `count` descriptors (s32) or booleans (u8), or none. */
export const VFIO_IRQ_SET = { sizeof: 20, argsz: 0, flags: 4, index: 8, start: 12, count: 16, data: 20 } as const;
export const VFIO_IRQ_SET_DATA_NONE = 0x1;
export const VFIO_IRQ_SET_DATA_BOOL = 0x2;
export const VFIO_IRQ_SET_DATA_EVENTFD = 0x4;
export const VFIO_IRQ_SET_ACTION_MASK = 0x8;
export const VFIO_IRQ_SET_ACTION_UNMASK = 0x10;
export const VFIO_IRQ_SET_ACTION_TRIGGER = 0x20;

/** Region and interrupt indexes of vfio-pci. */
export const VFIO_PCI_BAR0_REGION_INDEX = 0;
export const VFIO_PCI_BAR5_REGION_INDEX = 5;
export const VFIO_PCI_ROM_REGION_INDEX = 6;
export const VFIO_PCI_CONFIG_REGION_INDEX = 7;
export const VFIO_PCI_VGA_REGION_INDEX = 8;
/** Regions from this index on are device-specific. */
export const VFIO_PCI_NUM_REGIONS = 9;
export const VFIO_PCI_INTX_IRQ_INDEX = 0;
export const VFIO_PCI_MSI_IRQ_INDEX = 1;
export const VFIO_PCI_MSIX_IRQ_INDEX = 2;
/** The device reported an error that software must handle. */
export const VFIO_PCI_ERR_IRQ_INDEX = 3;
/** The kernel asks for the device back. */
export const VFIO_PCI_REQ_IRQ_INDEX = 4;
export const VFIO_PCI_NUM_IRQS = 5;

/** u32; devices are `count` {@link VFIO_PCI_DEPENDENT_DEVICE}. */
export const VFIO_PCI_HOT_RESET_INFO = { sizeof: 12, argsz: 0, flags: 4, count: 8, devices: 12 } as const;
/** `devid` replaces `group_id`, because the device was opened by its own node. */
export const VFIO_PCI_HOT_RESET_FLAG_DEV_ID = 0x1;
export const VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED = 0x2;
/** group_id and devid u32, segment u16, bus and devfn u8. */
export const VFIO_PCI_DEPENDENT_DEVICE = { sizeof: 8, group_id: 0, devid: 0, segment: 4, bus: 6, devfn: 7 } as const;
export const VFIO_PCI_DEVID_OWNED = 0;
export const VFIO_PCI_DEVID_NOT_OWNED = -1;
/** u32; group_fds are `count` descriptors (s32). */
export const VFIO_PCI_HOT_RESET = { sizeof: 12, argsz: 0, flags: 4, count: 8, group_fds: 12 } as const;

/** Both u32; data depend on the feature, whose number is in the low bits of the flags. */
export const VFIO_DEVICE_FEATURE = { sizeof: 8, argsz: 0, flags: 4, data: 8 } as const;
export const VFIO_DEVICE_FEATURE_MASK = 0xffff;
export const VFIO_DEVICE_FEATURE_GET = 0x10000;
export const VFIO_DEVICE_FEATURE_SET = 0x20000;
export const VFIO_DEVICE_FEATURE_PROBE = 0x40000;

/** Feature numbers. Supported since Linux 6.1 up to 8, 6.2 for 9, 6.7 for 10, 6.19 for 11. */
export const FEATURE = {
  VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: 0,
  VFIO_DEVICE_FEATURE_MIGRATION: 1,
  VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE: 2,
  VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY: 3,
  VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP: 4,
  VFIO_DEVICE_FEATURE_LOW_POWER_EXIT: 5,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_START: 6,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP: 7,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: 8,
  VFIO_DEVICE_FEATURE_MIG_DATA_SIZE: 9,
  VFIO_DEVICE_FEATURE_BUS_MASTER: 10,
  VFIO_DEVICE_FEATURE_DMA_BUF: 11,
} as const;

/** page_size u64, num_ranges u32, ranges the address (u64) of that many {@link VFIO_DEVICE_FEATURE_DMA_LOGGING_RANGE}. */
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_CONTROL = { sizeof: 24, page_size: 0, num_ranges: 8, ranges: 16 } as const;
/** Both u64. */
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_RANGE = { sizeof: 16, iova: 0, length: 8 } as const;
/** All u64; bitmap is the address of the bits. */
export const VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT = {
  sizeof: 32,
  iova: 0,
  length: 8,
  page_size: 16,
  bitmap: 24,
} as const;
/** u32. */
export const VFIO_DEVICE_FEATURE_BUS_MASTER = { sizeof: 4, op: 0 } as const;
export const VFIO_DEVICE_FEATURE_CLEAR_MASTER = 0;
export const VFIO_DEVICE_FEATURE_SET_MASTER = 1;
/** u32; dma_ranges are `nr_ranges` {@link VFIO_REGION_DMA_RANGE}. The ioctl's result is the descriptor. */
export const VFIO_DEVICE_FEATURE_DMA_BUF = {
  sizeof: 16,
  region_index: 0,
  open_flags: 4,
  flags: 8,
  nr_ranges: 12,
  dma_ranges: 16,
} as const;
/** Both u64, in bytes into the region. */
export const VFIO_REGION_DMA_RANGE = { sizeof: 16, offset: 0, length: 8 } as const;

/** u32, iommufd s32, token_uuid_ptr u64 (Linux 6.17; with VFIO_DEVICE_BIND_FLAG_TOKEN only). */
export const VFIO_DEVICE_BIND_IOMMUFD = {
  sizeof: 24,
  argsz: 0,
  flags: 4,
  iommufd: 8,
  out_devid: 12,
  token_uuid_ptr: 16,
} as const;
export const VFIO_DEVICE_BIND_FLAG_TOKEN = 0x1;
/** All u32; pt_id is an IOAS or a hardware page table, and is set to the latter on return. pasid: Linux 6.15. */
export const VFIO_DEVICE_ATTACH_IOMMUFD_PT = { sizeof: 16, argsz: 0, flags: 4, pt_id: 8, pasid: 12 } as const;
/** All u32. */
export const VFIO_DEVICE_DETACH_IOMMUFD_PT = { sizeof: 12, argsz: 0, flags: 4, pasid: 8 } as const;

// Containers of type 1.

/** u32, iova_pgsizes u64. */
export const VFIO_IOMMU_TYPE1_INFO = { sizeof: 24, argsz: 0, flags: 4, iova_pgsizes: 8, cap_offset: 16 } as const;
export const VFIO_IOMMU_INFO_PGSIZES = 0x1;
export const VFIO_IOMMU_INFO_CAPS = 0x2;

/** Capability ids in VFIO_IOMMU_TYPE1_INFO's chain. */
export const TYPE1_CAP = {
  VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: 1,
  VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION: 2,
  VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL: 3,
} as const;

/** nr_iovas u32, then that many {@link VFIO_IOVA_RANGE}. */
export const VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = { sizeof: 16, header: 0, nr_iovas: 8, iova_ranges: 16 } as const;
/** Both u64; `end` is inclusive. */
export const VFIO_IOVA_RANGE = { sizeof: 16, start: 0, end: 8 } as const;
/** flags u32, the rest u64. */
export const VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION = {
  sizeof: 32,
  header: 0,
  flags: 8,
  pgsize_bitmap: 16,
  max_dirty_bitmap_size: 24,
} as const;
/** u32: how many more mappings the container accepts. */
export const VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = { sizeof: 12, header: 0, avail: 8 } as const;

/** argsz and flags u32, the rest u64. */
export const VFIO_IOMMU_TYPE1_DMA_MAP = { sizeof: 32, argsz: 0, flags: 4, vaddr: 8, iova: 16, size: 24 } as const;
export const VFIO_DMA_MAP_FLAG_READ = 0x1;
export const VFIO_DMA_MAP_FLAG_WRITE = 0x2;
export const VFIO_DMA_MAP_FLAG_VADDR = 0x4;

/**
 * argsz and flags u32, the rest u64; data are a {@link VFIO_BITMAP} with the first flag. On return `size` is the bytes
 * unmapped.
 */
export const VFIO_IOMMU_TYPE1_DMA_UNMAP = { sizeof: 24, argsz: 0, flags: 4, iova: 8, size: 16, data: 24 } as const;
export const VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 0x1;
/** iova and size must be 0. */
export const VFIO_DMA_UNMAP_FLAG_ALL = 0x2;
export const VFIO_DMA_UNMAP_FLAG_VADDR = 0x4;

/** All u64: page size in bytes, size of the bitmap in bytes, and its address; one bit per page. */
export const VFIO_BITMAP = { sizeof: 24, pgsize: 0, size: 8, data: 16 } as const;
/** Both u32; data are a {@link VFIO_IOMMU_TYPE1_DIRTY_BITMAP_GET} with VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP. */
export const VFIO_IOMMU_TYPE1_DIRTY_BITMAP = { sizeof: 8, argsz: 0, flags: 4, data: 8 } as const;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_START = 0x1;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP = 0x2;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP = 0x4;
/** Both u64, then a {@link VFIO_BITMAP}. */
export const VFIO_IOMMU_TYPE1_DIRTY_BITMAP_GET = { sizeof: 40, iova: 0, size: 8, bitmap: 16 } as const;

// Containers of type sPAPR (POWER).

/** u32; `ddw` is a {@link VFIO_IOMMU_SPAPR_TCE_DDW_INFO}. */
export const VFIO_IOMMU_SPAPR_TCE_INFO = {
  sizeof: 32,
  argsz: 0,
  flags: 4,
  dma32_window_start: 8,
  dma32_window_size: 12,
  ddw: 16,
} as const;
export const VFIO_IOMMU_SPAPR_INFO_DDW = 0x1;
/** pgsizes u64, the rest u32. */
export const VFIO_IOMMU_SPAPR_TCE_DDW_INFO = {
  sizeof: 16,
  pgsizes: 0,
  max_dynamic_windows_supported: 8,
  levels: 12,
} as const;
/** argsz and flags u32, the rest u64; for registering and unregistering. */
export const VFIO_IOMMU_SPAPR_REGISTER_MEMORY = { sizeof: 24, argsz: 0, flags: 4, vaddr: 8, size: 16 } as const;
/** u32, window_size and start_addr u64; the kernel chooses start_addr. */
export const VFIO_IOMMU_SPAPR_TCE_CREATE = {
  sizeof: 40,
  argsz: 0,
  flags: 4,
  page_shift: 8,
  window_size: 16,
  levels: 24,
  start_addr: 32,
} as const;
/** argsz and flags u32, start_addr u64. */
export const VFIO_IOMMU_SPAPR_TCE_REMOVE = { sizeof: 16, argsz: 0, flags: 4, start_addr: 8 } as const;
