/** Processes much memory piece by piece, so that signals are handled and progress is shown. */
import { MiB } from '../../units.js';
import type { CommandContext } from '../shared/command.js';

/** Bytes processed between two turns of the event loop: a few milliseconds of work. */
const PIECE = 16 * MiB;

/**
 * Calls `visit` for each piece of `length` bytes, in order.
 *
 * @param what the name of the work, for the progress bar
 * @throws the reason of the signal, once it is aborted
 */
export async function inPieces(
  what: string,
  length: number,
  { output, signal }: CommandContext,
  visit: (offset: number, bytes: number) => void,
): Promise<void> {
  using progress = output.progress(what, length);
  for (let offset = 0; offset < length; offset += PIECE) {
    await new Promise((resolve) => setImmediate(resolve));
    signal.throwIfAborted();
    const bytes = Math.min(PIECE, length - offset);
    visit(offset, bytes);
    progress.update(offset + bytes);
  }
}
