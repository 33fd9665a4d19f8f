/**
 * Reads and writes whose blocks are in memory: the ones of many commands go to the kernel together, straight into or out of the host's
 * memory, without another thread.
 */
import type { FileBatch } from '../../../platform/ports.js';
import { KiB } from '../../../units.js';
import type { DeviceDma } from '../model.js';
import type { Command } from './command.js';
import type { Namespace } from './namespace.js';
import { BUCKET } from './segments.js';

/** Most pieces of the host's memory of one command. */
const MOST_PARTS = 32;
/** Most bytes of a read of an image on a disk: more is better copied by other threads. */
const MOST_CACHED = 64 * KiB;

/** Ends a command. @param moved were all its bytes moved? Otherwise some were, or none */
export type Moved = (command: Command, namespace: Namespace, toHost: boolean, moved: boolean) => void;

/** The transfers of one turn. */
export class Batch {
  readonly #files: FileBatch;
  readonly #dma: DeviceDma;
  readonly #ended: Moved;
  readonly #vas = new Float64Array(MOST_PARTS);
  // Of each command: what it is, and its first transfer.
  readonly #commands: Command[] = [];
  readonly #namespaces: Namespace[] = [];
  readonly #toHost: boolean[] = [];

  constructor(files: FileBatch, dma: DeviceDma, ended: Moved) {
    this.#files = files;
    this.#dma = dma;
    this.#ended = ended;
  }

  /**
   * Takes the transfer of a command, which ends with the next {@link run}; that must be in the same turn.
   *
   * @returns false if it has to go another way
   * @throws DmaError if the host's memory is not there
   */
  take(command: Command, namespace: Namespace, toHost: boolean): boolean {
    const { image } = namespace;
    const { segments, length } = command;
    const { count } = segments;
    const mayTake = image.instant ? toHost || !image.hasShrunk() : toHost && image.triesCached && length <= MOST_CACHED;
    if (!mayTake || count > MOST_PARTS || !this.#find(command, toHost)) return false;
    if (this.#files.count + count > this.#files.capacity) this.run();
    let { position } = command;
    for (let n = 0; n < count; n++) {
      image.addTo(this.#files, position, this.#vas[n], segments.lengths[n], toHost);
      position += segments.lengths[n];
    }
    this.#commands.push(command);
    this.#namespaces.push(namespace);
    this.#toHost.push(toHost);
    return true;
  }

  /** Moves all that was taken, and ends those commands. */
  run(): void {
    const count = this.#commands.length;
    if (count === 0) return;
    const { results } = this.#files;
    this.#files.run();
    let at = 0;
    for (let n = 0; n < count; n++) {
      const command = this.#commands[n];
      const { segments } = command;
      const { image } = this.#namespaces[n];
      if (!this.#toHost[n]) image.wroteBatch();
      let moved = true;
      for (let part = 0; part < segments.count; part++, at++)
        if (results[at] !== segments.lengths[part]) {
          moved = false;
          image.failedBatch(results[at]);
        }
      this.#ended(command, this.#namespaces[n], this.#toHost[n], moved);
    }
    this.#commands.length = this.#namespaces.length = this.#toHost.length = 0;
  }

  close(): void {
    this.#files.close();
  }

  /** Finds all of a command's memory, before the first byte moves. */
  #find({ segments }: Command, toHost: boolean): boolean {
    const dma = this.#dma;
    const access = toHost ? 'write' : 'read';
    for (let n = 0; n < segments.count; n++) {
      if (segments.iovas[n] === BUCKET) return false;
      const va = dma.address?.(segments.iovas[n], segments.lengths[n], access) ?? -1;
      if (va < 0) return false;
      this.#vas[n] = va;
    }
    return true;
  }
}
