/** Work on much memory, piece by piece, so that signals are heard and progress is seen. */
import { MiB } from '../../units.js';
import type { CommandContext } from '../shared/command.js';

/** What is worked on between two turns of the event loop: some milliseconds. */
const PIECE = 16 * MiB;

/**
 * Calls `visit` for each piece of `length` bytes, in order.
 *
 * @param what the work, for the progress bar
 * @throws the reason of the signal, once that is aborted
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
