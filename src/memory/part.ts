/** Memory as callers name it: registered memory, or a part of it, by address and length. */
import { reading } from '../check.js';
import { invalid } from '../errors.js';
import { Range } from '../ranges.js';
import { show } from '../show.js';
import type { Va, VaLike } from '../units.js';

/** Memory, or a part of it: whatever has both, such as external memory, a block or a zone, or `{ va, length }`. */
export interface MemoryPart {
  /** Address of the first byte. */
  readonly va: VaLike;
  /** bytes */
  readonly length: number;
  /** Is the memory still there? Absent: yes. What was freed has no address for devices, whoever has the memory now. */
  readonly live?: boolean;
}

/** @throws DmaError EINVAL for what can not be memory */
export function mustBePart(part: unknown, operation: string): asserts part is object {
  if (typeof part === 'object' && part !== null) return;
  throw invalid(operation, `memory, or a part of it as { va, length }, is wanted, not ${show(part)}`, {
    hint: 'external.register takes Buffers and typed arrays, and what it returns can be mapped',
  });
}

/** The addresses of memory that a caller names. @throws DmaError EINVAL unless they are possible */
export function rangeOf(part: MemoryPart, operation: string): Range<Va> {
  mustBePart(part, operation);
  const { va, length } = reading(operation, 'the memory', () => ({ va: part.va, length: part.length }));
  if (va === 0) throw invalid(operation, 'there is no memory at address 0', { hint: 'give the va of the memory' });
  return new Range(va as Va, length, operation);
}
