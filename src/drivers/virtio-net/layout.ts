/** Virtio 1.2: the structures that a network device on PCI shares with its driver. Offsets and sizes in bytes; little-endian. */

export const VIRTIO_VENDOR = 0x1af4;
/** The device ids of a network device (4.1.2): one that is only modern, and one with the old interface as well. */
export const NETWORK_DEVICE = { MODERN: 0x1041, TRANSITIONAL: 0x1000 } as const;

/** A vendor capability (4.1.4): its fields, the least length, and which structure it is for. */
export const CAPABILITY = { LENGTH: 2, KIND: 3, BAR: 4, OFFSET: 8, SIZE: 12, BYTES: 16, MULTIPLIER: 16 } as const;
export const STRUCTURE = { COMMON: 1, NOTIFY: 2, ISR: 3, DEVICE: 4 } as const;

/** The common configuration (4.1.4.3). */
export const COMMON = {
  DEVICE_FEATURE_SELECT: 0,
  DEVICE_FEATURE: 4,
  DRIVER_FEATURE_SELECT: 8,
  DRIVER_FEATURE: 12,
  CONFIG_VECTOR: 16,
  QUEUES: 18,
  STATUS: 20,
  GENERATION: 21,
  QUEUE_SELECT: 22,
  QUEUE_SIZE: 24,
  QUEUE_VECTOR: 26,
  QUEUE_ENABLE: 28,
  QUEUE_NOTIFY_OFFSET: 30,
  QUEUE_DESCRIPTORS: 32,
  QUEUE_DRIVER: 40,
  QUEUE_DEVICE: 48,
  BYTES: 56,
} as const;

/** No interrupt vector (4.1.5.1.2). */
export const NO_VECTOR = 0xffff;

/** Bits of the interrupt status (4.1.4.5). */
export const ISR = { QUEUE: 1, CONFIG: 2 } as const;

/** Bits of the device status (2.1). */
export const STATUS = {
  ACKNOWLEDGE: 1,
  DRIVER: 2,
  DRIVER_OK: 4,
  FEATURES_OK: 8,
  NEEDS_RESET: 64,
  FAILED: 128,
} as const;
/** What a status register reads as that is not there any more. */
export const GONE = 0xff;

/** Feature bits, by number: of network devices (5.1.3), and of all (6). */
export const FEATURE = {
  CSUM: 0,
  GUEST_CSUM: 1,
  MTU: 3,
  MAC: 5,
  HOST_TSO4: 11,
  HOST_TSO6: 12,
  MRG_RXBUF: 15,
  STATUS: 16,
  CTRL_VQ: 17,
  CTRL_RX: 18,
  MQ: 22,
  CTRL_MAC_ADDR: 23,
  VERSION_1: 32,
  ACCESS_PLATFORM: 33,
  RING_PACKED: 34,
  ORDER_PLATFORM: 36,
  SPEED_DUPLEX: 63,
} as const;

/** The configuration of a network device (5.1.4). */
export const CONFIG = { MAC: 0, STATUS: 6, PAIRS: 8, MTU: 10, SPEED: 12, DUPLEX: 16, BYTES: 20 } as const;
export const LINK_UP = 1;

/** A descriptor (2.7.5 and 2.8.13) is four words: address, length, and the rest. */
export const DESCRIPTOR_BYTES = 16;
export const DESCRIPTOR = { NEXT: 1, WRITE: 2 } as const;
/** Flags of packed rings (2.8.1). */
export const PACKED = { AVAILABLE: 1 << 7, USED: 1 << 15 } as const;
/** What the other side of a packed ring is asked to do (2.8.14). */
export const EVENTS = { ON: 0, OFF: 1 } as const;
/** The flag of both halves of a split ring (2.7.6 and 2.7.8): events are not wanted. */
export const QUIET = 1;
/** Descriptors of a ring at most (2.7, 2.8). */
export const MOST_DESCRIPTORS = 32_768;

/** What is in front of each frame (5.1.6). */
export const HEADER = {
  FLAGS: 0,
  SEGMENTATION: 1,
  HEADERS: 2,
  SEGMENT_SIZE: 4,
  SUM_START: 6,
  SUM_OFFSET: 8,
  BUFFERS: 10,
  BYTES: 12,
} as const;
export const HEADER_FLAG = { NEEDS_CSUM: 1, DATA_VALID: 2 } as const;
export const SEGMENTATION = { NONE: 0, TCPV4: 1, TCPV6: 4 } as const;

/** Commands (5.1.6.5): class and number; the answer. */
export const COMMAND = {
  PROMISCUOUS: [0, 0],
  SET_MAC: [1, 1],
  SET_PAIRS: [4, 0],
} as const;
export const COMMAND_OK = 0;
