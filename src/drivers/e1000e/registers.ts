/**
 * Registers and descriptors of the Intel 82574L (82574 GbE Controller Family Datasheet, chapters 7 and 10). Registers are 32 bits;
 * offsets in bytes, from the beginning of BAR 0.
 */

export const REG = {
  /** device control */
  CTRL: 0x0000,
  /** device status */
  STATUS: 0x0008,
  /** EEPROM control */
  EECD: 0x0010,
  /** EEPROM read */
  EERD: 0x0014,
  CTRL_EXT: 0x0018,
  /** MDI control: registers of the PHY */
  MDIC: 0x0020,
  /** flow control */
  FCAL: 0x0028,
  FCAH: 0x002c,
  FCT: 0x0030,
  /** interrupt cause read; a store of ones clears them */
  ICR: 0x00c0,
  /** interrupt mask set */
  IMS: 0x00d0,
  /** interrupt mask clear */
  IMC: 0x00d8,
  /** causes that an MSI-X message clears */
  EIAC: 0x00dc,
  /** vectors of the causes */
  IVAR: 0x00e4,
  RCTL: 0x0100,
  TCTL: 0x0400,
  /** extended configuration: who owns the MDIO */
  EXTCNF_CTRL: 0x0f00,
  RXCSUM: 0x5000,
  /** receive filter control */
  RFCTL: 0x5008,
  /** multicast table: 128 words */
  MTA: 0x5200,
  /** receive addresses: 16 pairs */
  RAL: 0x5400,
  RAH: 0x5404,
  /** multiple receive queues command */
  MRQC: 0x5818,
  /** 3GIO control, 1 and 2 */
  GCR: 0x5b00,
  GCR2: 0x5b64,
  /** redirection table of RSS: 128 bytes */
  RETA: 0x5c00,
  /** key of RSS: 40 bytes */
  RSSRK: 0x5c80,
} as const;

/** Bytes of BAR 0. */
export const BAR_BYTES = 0x20000;

/** Registers of receive queue `queue`. */
export const RX_QUEUE = { BAL: 0x2800, BAH: 0x2804, LEN: 0x2808, HEAD: 0x2810, TAIL: 0x2818, STEP: 0x100 } as const;
/** Registers of transmit queue `queue`. */
export const TX_QUEUE = {
  BAL: 0x3800,
  BAH: 0x3804,
  LEN: 0x3808,
  HEAD: 0x3810,
  TAIL: 0x3818,
  DCTL: 0x3828,
  ARBITRATION: 0x3840,
  STEP: 0x100,
} as const;

/** Counters of errors. Reading one sets it to 0; they stay at all ones rather than wrap. */
export const STATISTICS = {
  CRC_ERRORS: 0x4000,
  ALIGNMENT_ERRORS: 0x4004,
  RX_ERRORS: 0x400c,
  /** frames that found no room */
  MISSED: 0x4010,
  EXCESSIVE_COLLISIONS: 0x4018,
  LATE_COLLISIONS: 0x401c,
  CARRIER_EXTENSION_ERRORS: 0x403c,
  /** frames that were cut off by a collision, too long, or longer with a wrong check sum; too short */
  UNDERSIZE: 0x40a4,
  FRAGMENTS: 0x40a8,
  OVERSIZE: 0x40ac,
  JABBER: 0x40b0,
} as const;

export const CTRL = {
  FULL_DUPLEX: 1 << 0,
  MASTER_DISABLE: 1 << 2,
  /** the MAC finds the speed out by itself: not with the PHY inside */
  AUTO_SPEED: 1 << 5,
  SET_LINK_UP: 1 << 6,
  INVERT_LOSS_OF_SIGNAL: 1 << 7,
  FORCE_SPEED: 1 << 11,
  FORCE_DUPLEX: 1 << 12,
  RESET: 1 << 26,
  RX_FLOW: 1 << 27,
  TX_FLOW: 1 << 28,
  /** reserved; has to be 0 */
  RESERVED_29: 1 << 29,
  VLAN_MODE: 1 << 30,
} as const;

export const STATUS = {
  FULL_DUPLEX: 1 << 0,
  LINK_UP: 1 << 1,
  SPEED_SHIFT: 6,
  SPEED_MASK: 3,
  MASTER_ENABLE: 1 << 19,
} as const;

/** The EEPROM was read into the registers after a reset. */
export const EECD_AUTO_READ = 1 << 9;

export const EERD = { START: 1 << 0, DONE: 1 << 1, ADDRESS_SHIFT: 2, DATA_SHIFT: 16 } as const;
/** What the first {@link EEPROM_WORDS} words of the EEPROM add up to, modulo 2^16. */
export const EEPROM_SUM = 0xbaba;
export const EEPROM_WORDS = 0x40;

export const CTRL_EXT = {
  /** reads the EEPROM again */
  EEPROM_RESET: 1 << 13,
  RESERVED_22: 1 << 22,
  RESERVED_23: 1 << 23,
  /** for the firmware of the management engine: a driver has it */
  DRIVER_LOADED: 1 << 28,
  /** pending bits of MSI-X are cleared when they are read */
  PBA_CLEAR: 2 ** 31,
} as const;

export const MDIC = {
  REGISTER_SHIFT: 16,
  PHY: 1 << 21,
  WRITE: 1 << 26,
  READ: 2 << 26,
  READY: 1 << 28,
  ERROR: 1 << 30,
} as const;
/** Register 0 of the PHY (IEEE 802.3, 22.2.4.1). */
export const PHY_CONTROL = { REGISTER: 0, RESTART: 1 << 9, POWER_DOWN: 1 << 11, AUTONEGOTIATE: 1 << 12 } as const;
export const MDIO_OWNED_BY_SOFTWARE = 1 << 5;

/** Causes of interrupts, in ICR, IMS, IMC and EIAC. */
export const CAUSE = {
  LINK: 1 << 2,
  RX_OVERRUN: 1 << 6,
  RX_TIMER: 1 << 7,
  /** shifted left by the queue's number */
  RX_QUEUE: 1 << 20,
  OTHER: 1 << 24,
} as const;
export const RX_QUEUE_CAUSES = CAUSE.RX_QUEUE * 3;

/** Fields of IVAR have 4 bits each: the vector, and whether it counts. */
export const IVAR = { RX0_SHIFT: 0, RX1_SHIFT: 4, OTHER_SHIFT: 16, VALID: 8 } as const;

export const RCTL = {
  ENABLE: 1 << 1,
  UNICAST_PROMISCUOUS: 1 << 3,
  MULTICAST_PROMISCUOUS: 1 << 4,
  /** frames of more than 1,522 bytes */
  LONG: 1 << 5,
  BROADCAST: 1 << 15,
  SIZE_SHIFT: 16,
  /** sizes are 16 times as large */
  SIZE_TIMES_16: 1 << 25,
  STRIP_CRC: 1 << 26,
} as const;

/** Sizes of receive buffers, largest first, and what stands for them in RCTL. */
export const BUFFER_SIZES: readonly (readonly [bytes: number, bits: number])[] = [
  [16_384, RCTL.SIZE_TIMES_16 | (1 << RCTL.SIZE_SHIFT)],
  [8192, RCTL.SIZE_TIMES_16 | (2 << RCTL.SIZE_SHIFT)],
  [4096, RCTL.SIZE_TIMES_16 | (3 << RCTL.SIZE_SHIFT)],
  [2048, 0],
  [1024, 1 << RCTL.SIZE_SHIFT],
  [512, 2 << RCTL.SIZE_SHIFT],
  [256, 3 << RCTL.SIZE_SHIFT],
];

export const TCTL = {
  ENABLE: 1 << 1,
  PAD: 1 << 3,
  /** attempts after a collision */
  THRESHOLD_SHIFT: 4,
  THRESHOLD_MASK: 0xff,
  DISTANCE_SHIFT: 12,
  DISTANCE_MASK: 0x3ff,
  RETRY_LATE: 1 << 24,
} as const;

/** Of TXDCTL: descriptors that are still to be processed are counted; has to be set. */
export const TXDCTL_COUNT = 1 << 22;
export const TARC = { ENABLE: 1 << 10, RESERVED_26: 1 << 26, RESERVED_27_TO_30: 0xf << 27 } as const;

/** `L1_WITHOUT_L0S`: L1 of ASPM is entered although the receiver is not in L0s. */
export const GCR = { RESERVED_22: 1 << 22, L1_WITHOUT_L0S: 1 << 27 } as const;
/** Completions of PCIe are taken as they come. */
export const GCR2_COMPLETIONS = 1 << 0;

export const RXCSUM = {
  IP: 1 << 8,
  L4: 1 << 9,
  /** descriptors have the hash of RSS instead of a check sum of the packet */
  HASH: 1 << 13,
} as const;

export const RFCTL = { EXTENDED: 1 << 15, NO_IPV6_EXTENSIONS: 1 << 16, NO_NEW_IPV6_EXTENSIONS: 1 << 17 } as const;

export const RAH_VALID = 2 ** 31;

/** RSS, and the fields that are hashed. */
export const MRQC = { RSS: 1, TCP_IPV4: 1 << 16, IPV4: 1 << 17, IPV6: 1 << 20, TCP_IPV6: 1 << 21 } as const;
/** Of a byte of RETA: the queue. */
export const RETA_QUEUE_SHIFT = 7;
export const RETA_ENTRIES = 128;
export const RSS_KEY_BYTES = 40;

/** Bytes of a descriptor of any kind. */
export const DESCRIPTOR_BYTES = 16;

/**
 * Extended receive descriptor, as four words. Given to the adapter: the address, 0, 0. Given back: {@link RX.TYPE} and queue; hash; status and
 * errors; length and VLAN tag.
 */
export const RX = {
  /** Kind of hash, in the first word. 0: none. */
  TYPE: 0xf,
  DONE: 1 << 0,
  END: 1 << 1,
  IGNORE_SUMS: 1 << 2,
  VLAN: 1 << 3,
  UDP_CHECKED: 1 << 4,
  TCP_CHECKED: 1 << 5,
  IP_CHECKED: 1 << 6,
  /** wrong CRC; symbol; sequence; carrier extension; data error */
  FRAME_ERRORS: (1 << 24) | (1 << 25) | (1 << 26) | (1 << 28) | (1 << 31),
  L4_ERROR: 1 << 29,
  IP_ERROR: 1 << 30,
} as const;

/** Legacy receive descriptor. Given back: the address; length; status, errors and VLAN tag. {@link extendedStatus} makes the status of it. */
export const LEGACY_RX = { LENGTH: 2, STATUS: 3, TAG_SHIFT: 16 } as const;

/** The status of a legacy receive descriptor, with its errors where an extended one has them. */
export function extendedStatus(legacy: number): number {
  return (legacy & 0xff) | ((legacy & 0xff00) << 16);
}

/**
 * Transmit descriptors, as four words. Data: the address; length, kind and command; status, options and VLAN tag. Context: where the sum of IP is; where
 * that of TCP or UDP is; kind and command; status. Legacy: as data, without {@link TX.DATA} and {@link TX.EXTENDED}.
 */
export const TX = {
  DATA: 1 << 20,
  END: 1 << 24,
  INSERT_CRC: 1 << 25,
  /** write the status back */
  REPORT: 1 << 27,
  EXTENDED: 1 << 29,
  INSERT_VLAN: 1 << 30,
  /** of a context: it is TCP, else UDP; IPv4, else IPv6 */
  CONTEXT_TCP: 1 << 24,
  CONTEXT_IPV4: 1 << 25,
  /** of the fourth word */
  DONE: 1 << 0,
  SUM_IP: 1 << 8,
  SUM_L4: 1 << 9,
  VLAN_SHIFT: 16,
  LENGTH_MASK: 0xfffff,
} as const;

/** What registers of a device that is gone read as. */
export const ALL_ONES = 0xffffffff;
