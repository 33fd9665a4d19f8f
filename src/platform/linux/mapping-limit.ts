/** The limit on mappings of a process (vm.max_map_count): close to it V8 would abort the process. */
import { DmaError, NO_DESCRIPTORS, unlessFails } from '../../errors.js';
import { mappingFacts } from './limits.js';

/** Mappings reserved for V8 and the rest of the process, which abort it if they get none. */
const SPARE_MAPPINGS = 4096;
/**
 * How many mappings are made without counting: at least this many close to the limit, and at most this many far from
 * it.
 */
const LEAST_UNCHECKED = SPARE_MAPPINGS / 16;
const MOST_UNCHECKED = SPARE_MAPPINGS / 8;

/**
 * Keeps the process away from vm.max_map_count. Counting takes about 1 us per mapping, so it is repeated only after a
 * sixteenth of what was left may have been used. Each thread counts for itself: 16 threads that saw the same number
 * free use no more than that, or no more than the spare ones if fewer are left. `most` limits a thread that counted
 * long ago, when more were free. A process without descriptors can not count; it assumes one more mapping for each of
 * its calls since the last count.
 *
 * Call it before creating a mapping. @throws DmaError ENOMEM
 */
export function needMappings(operation: string): void {
  known.used++;
  if (unchecked-- > 0) return;
  known = unlessFails(NO_DESCRIPTORS, mappingFacts) ?? known;
  // Not counted yet.
  if (known.limit === 0) known = mappingFacts();
  const { limit, used } = known;
  const left = limit - used - SPARE_MAPPINGS;
  if (left > 0) {
    const most = Math.max(MOST_UNCHECKED, Math.floor(used / 16));
    unchecked = Math.min(Math.max(LEAST_UNCHECKED, Math.floor(left / 16)), most);
    return;
  }
  unchecked = 0;
  const reason = `the process has ${used} mappings, and the kernel allows ${limit} (vm.max_map_count)`;
  const hint =
    `${SPARE_MAPPINGS} are reserved for the rest of the process: map fewer, larger pieces (a heap hands out parts of one), or raise ` +
    'it with "sysctl vm.max_map_count"';
  throw new DmaError({ code: 'ENOMEM', operation, reason, hint });
}
/** How many mappings this thread may still make before it counts again, and the last count. */
let unchecked = 0;
let known = { limit: 0, used: 0 };
