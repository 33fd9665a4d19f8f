/** Checks of addresses, lengths and page sizes before they are passed to the kernel. */
import { invalid } from '../../errors.js';
import { isAddress, isPowerOfTwo } from '../../units.js';

/** Throws EINVAL unless `value` is a multiple of the page size. */
export function checkPages(operation: string, what: string, value: number, pageSize: number): void {
  if (!isAddress(value) || value % pageSize !== 0)
    throw invalid(operation, `the ${what} ${value} is not a multiple of the page size ${pageSize}`);
}

/** Throws EINVAL unless [va, va + length) is one page or more. */
export function checkRange(operation: string, va: number, length: number, pageSize: number): void {
  checkPages(operation, 'address', va, pageSize);
  checkPages(operation, 'length', length, pageSize);
  if (length === 0) throw invalid(operation, 'the length of a mapping can not be 0');
}

/** The hugetlb page size bits in the flags of mmap and memfd_create. Throws EINVAL for an impossible page size. */
export function hugePageFlag(operation: string, pageSize: number, shift: number): number {
  if (!isPowerOfTwo(pageSize)) throw invalid(operation, `${pageSize} bytes is not a valid page size`);
  return Math.log2(pageSize) << shift;
}
