/** What calls take. */
import type { Shape } from '../../check.js';

/** What every operation takes. */
export interface NvmeCallOptions {
  /** Aborts it: what has not been sent is not, and the controller is asked to abort what was. */
  readonly signal?: AbortSignal;
  /** Time limit in milliseconds, after which it is aborted. Default: see `Nvme.configure`. */
  readonly timeoutMs?: number;
}

/** @internal For checking them. */
export const CALL: Shape<NvmeCallOptions> = { signal: 'signal', timeoutMs: 'number' };
