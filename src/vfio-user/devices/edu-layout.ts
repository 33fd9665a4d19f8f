/**
 * The programming interface of the `edu` PCI device, as QEMU defines it (docs/specs/edu.rst and hw/misc/edu.c). The model
 * and the driver share it.
 *
 * All of it is in region 0 (1 MiB). Accesses are naturally aligned; 32 bits below 0x80, 32 or 64 bits from there. A 32-bit
 * store to a 64-bit register clears its upper half.
 */
import { invalid } from '../../errors.js';

/** Who the device says it is: vendor 1234 (not allotted; QEMU's), device 11e8. */
export const EDU_IDENTITY = { vendor: 0x1234, device: 0x11e8 } as const;

/** The region with the registers, and its bytes. */
export const EDU_REGION = { INDEX: 0, SIZE: 1 << 20 } as const;

/** Offsets of the registers in bytes. */
export const EDU_REGISTER = {
  /** read only: major version, minor version, two zero bytes and 0xed, see {@link EDU_IDENTIFICATION} */
  IDENTIFICATION: 0x00,
  /** reads as the complement of what was stored */
  LIVENESS: 0x04,
  /** store n, read n! modulo 2^32 once `EDU_STATUS.COMPUTING` is clear */
  FACTORIAL: 0x08,
  /** see {@link EDU_STATUS} */
  STATUS: 0x20,
  /** read only: the reasons for interrupts that have not been acknowledged, see {@link EDU_INTERRUPT} */
  INTERRUPT_STATUS: 0x24,
  /** write only: adds reasons and interrupts */
  INTERRUPT_RAISE: 0x60,
  /** write only: takes reasons away */
  INTERRUPT_ACKNOWLEDGE: 0x64,
  /** 64 bits, as the three below: where a transfer reads; an IOVA, or a buffer address */
  DMA_SOURCE: 0x80,
  /** where a transfer writes: a buffer address, or an IOVA */
  DMA_DESTINATION: 0x88,
  /** bytes to transfer */
  DMA_COUNT: 0x90,
  /** see {@link EDU_COMMAND} */
  DMA_COMMAND: 0x98,
} as const;

/** What `EDU_REGISTER.IDENTIFICATION` reads as: version 1.0. */
export const EDU_IDENTIFICATION = 0x010000ed;

/** Bits of `EDU_REGISTER.STATUS`. */
export const EDU_STATUS = {
  /** read only: a factorial is being computed */
  COMPUTING: 0x01,
  /** interrupt when it is done */
  INTERRUPT_AFTER: 0x80,
} as const;

/** Reasons for an interrupt. Clients may raise others with `EDU_REGISTER.INTERRUPT_RAISE`. */
export const EDU_INTERRUPT = { FACTORIAL: 0x001, DMA: 0x100 } as const;

/** Bits of `EDU_REGISTER.DMA_COMMAND`. */
export const EDU_COMMAND = {
  /** store: start; read: still running */
  RUN: 0x1,
  /** from the buffer to memory; without it from memory to the buffer */
  TO_MEMORY: 0x2,
  /** interrupt when it is done */
  INTERRUPT: 0x4,
} as const;

/** The device's own memory: the one end of every transfer. Reached by transfers only, not by register accesses. */
export const EDU_BUFFER = { ADDRESS: 0x40000, LENGTH: 4096 } as const;

/** How many bits of an IOVA the device uses unless it is told otherwise (QEMU's `dma_mask` property). */
export const EDU_DMA_MASK_BITS = 28;

/** Key `dma-mask=BITS` of a device's name: IOVA bits that it uses, when that was set otherwise than the 28 of QEMU. */
export function eduMaskBits(args: ReadonlyMap<string, string>): number {
  const text = args.get('dma-mask');
  const bits = text === undefined ? EDU_DMA_MASK_BITS : Number(text);
  if (Number.isInteger(bits) && bits >= 12 && bits <= 52) return bits;
  throw invalid('open', `there is no dma-mask=${text}`, {
    hint: `it is a number of address bits from 12 to 52, ${EDU_DMA_MASK_BITS} when left out`,
  });
}
