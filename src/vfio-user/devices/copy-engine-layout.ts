/**
 * The programming interface of the copy engine, an emulated PCI device of the kind that servers have for moving memory (I/OAT,
 * DSA): the processor describes copies in a ring in memory and rings a doorbell, the device does them in order and reports
 * each in a second ring. The model and the driver share this file; it is the specification.
 *
 * Everything is little-endian. IOVAs are 64 bits in two words, the low one first, and below 2^53.
 *
 * Registers, region 0, 4 KiB. 32 bits each; a longer aligned access is one access a word, lowest offset first; anything
 * else reads all ones and stores nothing. Offsets without a register read 0.
 *
 * | offset | name             |    | meaning                                                                          |
 * | ------ | ---------------- | -- | -------------------------------------------------------------------------------- |
 * | 0x00   | ID               | ro | 0x79706f63, "copy"                                                                |
 * | 0x04   | VERSION          | ro | major in the upper 16 bits, minor in the lower                                    |
 * | 0x08   | MAX_RING         | ro | largest RING_SIZE                                                                 |
 * | 0x0c   | MAX_TRANSFER     | ro | largest length of a descriptor, in bytes                                          |
 * | 0x10   | CONTROL          | rw | bit 0 ENABLE, bit 1 RESET                                                         |
 * | 0x14   | STATUS           | ro | bit 0 ENABLED, bit 1 BUSY (descriptors are left), bit 2 HALTED (by an error)      |
 * | 0x20   | RING_LOW, _HIGH  | rw | IOVA of the descriptor ring, a multiple of 32                                     |
 * | 0x28   | DONE_LOW, _HIGH  | rw | IOVA of the completion ring, a multiple of 32                                     |
 * | 0x30   | RING_SIZE        | rw | entries of either ring, a power of two from 2 to MAX_RING                         |
 * | 0x34   | COALESCE         | rw | completions for one interrupt; 0 is as 1                                          |
 * | 0x40   | PRODUCER         | rw | doorbell: descriptors that are ready, counted from ENABLE on, modulo 2^32         |
 * | 0x44   | CONSUMER         | ro | descriptors whose completions are in memory, counted alike                        |
 * | 0x50   | INTERRUPT_ENABLE | rw | bit 0 COMPLETION, bit 1 ERROR                                                     |
 * | 0x54   | INTERRUPT_STATUS | ro | the same bits: what has happened                                                  |
 * | 0x58   | INTERRUPT_ACK    | wo | the same bits: takes them out of INTERRUPT_STATUS                                 |
 * | 0x60   | ERROR_KIND       | ro | how the last failure came about, a code of the list below                         |
 * | 0x64   | ERROR_LOW, _HIGH | ro | the IOVA that it was about                                                        |
 *
 * CONTROL. Storing RESET brings the device to its power-on state and abandons all work; the bit reads 1 until no access to
 * memory is under way any more. Storing ENABLE starts the device at descriptor 0 and completion 0; clearing it abandons all
 * work and the counts. RING_* and DONE_* can only be stored while the device is not enabled. An impossible ring halts it.
 *
 * HALTED. The device can not reach a ring, or was told something impossible. It does nothing until it is disabled or reset.
 *
 * Descriptor n is entry n modulo RING_SIZE of the ring:
 *
 * | word | meaning                                                                                      |
 * | ---- | -------------------------------------------------------------------------------------------- |
 * | 0, 1 | source IOVA                                                                                  |
 * | 2, 3 | destination IOVA                                                                             |
 * | 4    | length in bytes, from 1 to MAX_TRANSFER; source and destination must not overlap             |
 * | 5    | flags: bit 0 INTERRUPT, this completion counts for interrupts; all others 0                   |
 * | 6    | cookie, given back in the completion                                                         |
 * | 7    | 0                                                                                            |
 *
 * Completion n is entry n modulo RING_SIZE of the other ring. There is no check that the driver has seen the entry's last
 * content: it must not have more than RING_SIZE descriptors between PRODUCER and what it has seen completed.
 *
 * | word | meaning                                                                                      |
 * | ---- | -------------------------------------------------------------------------------------------- |
 * | 0    | cookie                                                                                       |
 * | 1    | bytes copied, from the beginning of the descriptor; nothing behind them was written           |
 * | 2, 3 | the first IOVA that could not be reached; 0 after success                                     |
 * | 4-6  | 0                                                                                            |
 * | 7    | bits 0-7 the code, bit 31 the phase: 1 in the first pass over the ring, 0 in the second, ... |
 *
 * Word 7 is stored last, by one 32-bit store; the driver clears the ring before ENABLE and then knows by the phase what is
 * new. A descriptor that fails does not disturb the next one.
 *
 * Interrupts, vector 0. COMPLETION happens when COALESCE flagged descriptors have completed, when the device has nothing
 * more to do after at least one, and when a descriptor failed, flagged or not. ERROR happens when the device halts. An
 * interrupt is signalled when a bit becomes set in INTERRUPT_STATUS and INTERRUPT_ENABLE both: acknowledge, then look.
 */

/** Who the device says it is: vendor 1234 (not allotted, and QEMU's for its own devices), device c0e1. */
export const COPY_IDENTITY = { vendor: 0x1234, device: 0xc0e1 } as const;

/** The region with the registers, and its bytes. */
export const COPY_REGION = { INDEX: 0, SIZE: 4096 } as const;

/** Offsets of the registers in bytes; see the table above. */
export const COPY_REGISTER = {
  ID: 0x00,
  VERSION: 0x04,
  MAX_RING: 0x08,
  MAX_TRANSFER: 0x0c,
  CONTROL: 0x10,
  STATUS: 0x14,
  RING_LOW: 0x20,
  RING_HIGH: 0x24,
  DONE_LOW: 0x28,
  DONE_HIGH: 0x2c,
  RING_SIZE: 0x30,
  COALESCE: 0x34,
  PRODUCER: 0x40,
  CONSUMER: 0x44,
  INTERRUPT_ENABLE: 0x50,
  INTERRUPT_STATUS: 0x54,
  INTERRUPT_ACK: 0x58,
  ERROR_KIND: 0x60,
  ERROR_LOW: 0x64,
  ERROR_HIGH: 0x68,
} as const;

/** What `COPY_REGISTER.ID` reads as. */
export const COPY_ID = 0x79706f63;

/** What `COPY_REGISTER.VERSION` reads as: 1.0. Drivers refuse another major version. */
export const COPY_VERSION = 0x0001_0000;

/** Bits of `COPY_REGISTER.CONTROL`. */
export const COPY_CONTROL = { ENABLE: 1, RESET: 2 } as const;

/** Bits of `COPY_REGISTER.STATUS`. */
export const COPY_STATUS = { ENABLED: 1, BUSY: 2, HALTED: 4 } as const;

/** Bits of the three interrupt registers. */
export const COPY_INTERRUPT = { COMPLETION: 1, ERROR: 2 } as const;

/** Flags of a descriptor. */
export const COPY_FLAG = { INTERRUPT: 1 } as const;

/** Bytes, and 32-bit words, of a descriptor and of a completion. */
export const COPY_ENTRY = { BYTES: 32, WORDS: 8 } as const;

/** Where the words of a descriptor are. */
export const DESCRIPTOR = {
  SOURCE_LOW: 0,
  SOURCE_HIGH: 1,
  DESTINATION_LOW: 2,
  DESTINATION_HIGH: 3,
  LENGTH: 4,
  FLAGS: 5,
  COOKIE: 6,
  RESERVED: 7,
} as const;

/** Where the words of a completion are. */
export const COMPLETION = { COOKIE: 0, BYTES: 1, FAULT_LOW: 2, FAULT_HIGH: 3, CODE: 7 } as const;

/** How a descriptor ended, or why the device halted. */
export const COPY_CODE = {
  OK: 0,
  /** length, flags, an address of 2^53 or more, or source and destination that overlap */
  BAD_DESCRIPTOR: 1,
  /** no memory is mapped where the device reads */
  READ_UNMAPPED: 2,
  /** memory is mapped there, but the device may not read it */
  READ_DENIED: 3,
  /** reading failed for another reason */
  READ_FAILED: 4,
  WRITE_UNMAPPED: 5,
  WRITE_DENIED: 6,
  WRITE_FAILED: 7,
  /** halted: the address or the size of a ring is impossible */
  BAD_RING: 8,
  /** halted: PRODUCER is behind CONSUMER, or more than RING_SIZE ahead of it */
  BAD_DOORBELL: 9,
} as const;

/** The phase bit that completion `index` carries, for a ring of `size` entries. */
export function completionPhase(index: number, size: number): 0 | 1 {
  return (index & size) === 0 ? 1 : 0;
}
