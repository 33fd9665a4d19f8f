/** A command that was fetched. */
import { SQE } from '../../../nvme/commands.js';
import { ENTRY } from '../../../nvme/registers.js';
import type { Lists } from './lists.js';
import type { SubmissionQueue } from './queues.js';
import { Segments } from './segments.js';

/** One command, from fetching to completing; used again for others afterwards. */
export class Command {
  /** A copy of its entry, which the host can not change any more. */
  readonly words = new Uint32Array(ENTRY.SUBMISSION / 4);
  readonly bytes = new Uint8Array(this.words.buffer);
  /** The memory that it names. */
  readonly segments = new Segments();
  /** What its lists are loaded with, if that takes messages. */
  lists: Lists | undefined;
  /** Which life of the controller it belongs to. */
  epoch = 0;
  /** Where its data is in the image, and how much of it there is, in bytes. */
  position = 0;
  length = 0;
  /** The second word of the result, which few commands have. */
  resultHigh = 0;
  /** Its timer, if it was delayed on purpose. */
  timer: NodeJS.Timeout | undefined;

  constructor(public queue: SubmissionQueue) {}

  get opcode(): number {
    return this.words[0] & 0xff;
  }

  /** Fused operation and PSDT. */
  get flags(): number {
    return (this.words[0] >>> 8) & 0xff;
  }

  get cid(): number {
    return this.words[0] >>> 16;
  }

  get nsid(): number {
    return this.words[SQE.NSID / 4];
  }

  /** Command dword `n`. */
  dword(n: number): number {
    return this.words[n];
  }
}
