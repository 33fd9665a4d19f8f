/** The two files of a port whose cable is captures. Nothing here waits: a pipe without data, or without room, is asked again. */
import { closeSync, constants, fstatSync, openSync, readSync, statSync, writeSync, type BigIntStats } from 'node:fs';
import { DmaError, invalid } from '../../errors.js';
import type { CaptureFrame } from '../../net/capture/capture-frame.js';
import { CaptureReader } from '../../net/capture/capture-reader.js';
import { captureKindOf, CaptureWriter } from '../../net/capture/capture-writer.js';
import { fromNode } from '../../platform/linux/node-errors.js';
import { delay, now } from '../../timers.js';

/** Bytes that are read at once. */
const CHUNK = 256 * 1024;
/** How long a pipe may be full before the rest is given up, in milliseconds. */
const PATIENCE_MS = 2000;

/** A file that is open. */
interface OpenFile {
  readonly path: string;
  readonly dev: bigint;
  readonly ino: bigint;
  readonly isWritten: boolean;
}

/** Regular files that are open as captures, by descriptor. */
const files = new Map<number, OpenFile>();

/**
 * Opens a capture. Opening for writing empties a file, so it must not be open already, under whatever name; and what is written is not read.
 *
 * @throws DmaError EINVAL if it is the same file as another capture; as open(2)
 */
export function openCapture(path: string, flags: number, hint?: string): number {
  const isWritten = (flags & constants.O_WRONLY) !== 0;
  const there = statOf(path);
  for (const other of there?.isFile() === true ? files.values() : [])
    if (other.dev === there?.dev && other.ino === there.ino && (isWritten || other.isWritten))
      throw invalid('open', `${other.path} and ${path} are the same file`, {
        hint: 'a capture that is written needs a file of its own: give another one',
      });
  const fd = opened(path, flags, hint);
  const stat = fstatSync(fd, { bigint: true });
  if (stat.isFile()) files.set(fd, { path, dev: stat.dev, ino: stat.ino, isWritten });
  return fd;
}

/** Closes a file that {@link openCapture} opened. */
export function closeCapture(fd: number): void {
  files.delete(fd);
  closeSync(fd);
}

function statOf(path: string): BigIntStats | undefined {
  try {
    return statSync(path, { bigint: true });
  } catch {
    // Opening it tells why.
    return undefined;
  }
}

/** The capture that is received: a file or a pipe. */
export class CaptureSource {
  readonly path: string;
  readonly fd: number;
  readonly #reader = new CaptureReader();
  readonly #isFile: boolean;
  #chunk = new Uint8Array(CHUNK);
  #atEnd = false;
  #hasBegun = false;
  /** May the bytes that were read have another frame? */
  #hasBytes = false;
  #failure: Error | undefined;
  #closed = false;

  /** @throws DmaError ENOENT, EACCES, EISDIR ... */
  constructor(path: string) {
    this.path = path;
    // A FIFO that nobody writes to yet would block.
    this.fd = openCapture(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const stat = fstatSync(this.fd);
    this.#isFile = stat.isFile();
    if (!stat.isDirectory()) return;
    closeCapture(this.fd);
    throw new DmaError({ code: 'EISDIR', operation: 'open', reason: `${path} is a directory` });
  }

  /** All frames were taken. */
  get ended(): boolean {
    return this.#atEnd && !this.#hasBytes && this.#failure === undefined;
  }

  /** Does `next` have something to do, as far as is known without asking? */
  get isReady(): boolean {
    return this.#hasBytes || this.#failure !== undefined || !this.#atEnd;
  }

  /** The next call of `next` throws this. */
  fail(error: Error): void {
    this.#failure = error;
  }

  /** The next frame, valid until the next call; `undefined` if there is none, or none yet. @throws DmaError EINVAL for a damaged capture; as read(2) */
  next(): CaptureFrame | undefined {
    for (;;) {
      if (this.#failure !== undefined) throw this.#failure;
      const frame = this.#reader.next();
      this.#hasBytes = frame !== undefined;
      if (frame !== undefined) return frame;
      if (this.#atEnd || this.#closed) return undefined;
      const { needs } = this.#reader;
      if (needs > this.#chunk.length) this.#chunk = new Uint8Array(needs);
      const count = this.#read();
      if (count === undefined) return undefined;
      if (count > 0) {
        this.#hasBegun = true;
        this.#reader.push(this.#chunk.subarray(0, count));
        continue;
      }
      // Nobody writes to the pipe yet.
      if (!this.#isFile && !this.#hasBegun) return undefined;
      this.#atEnd = true;
      this.#reader.end();
    }
  }

  #read(): number | undefined {
    try {
      return readSync(this.fd, this.#chunk);
    } catch (error) {
      if (isBusy(error)) return undefined;
      throw fromNode(error, this.path, { operation: 'port.rx' });
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    closeCapture(this.fd);
  }
}

/** Where what is sent is written. */
export class CaptureTarget {
  readonly path: string;
  readonly writer: CaptureWriter;
  readonly #fd: number;
  /** What a pipe did not take yet. */
  #pending: Uint8Array = new Uint8Array(0);
  #closed = false;

  /** @throws DmaError ENOENT, EACCES, ENXIO ...; EINVAL if it is the file of another capture */
  constructor(path: string, link: number) {
    this.path = path;
    this.#fd = openCapture(
      path,
      constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_NONBLOCK,
      'nobody reads from this pipe: start its reader first',
    );
    this.writer = new CaptureWriter(captureKindOf(path), link, (bytes) => this.#write(bytes));
    try {
      // A program that sends nothing leaves a capture too.
      this.writer.flush();
    } catch (error) {
      closeCapture(this.#fd);
      throw error;
    }
  }

  /** Can another frame be written? @throws DmaError as write(2) */
  get hasRoom(): boolean {
    if (this.#pending.length > 0) this.#pending = this.#writeSome(this.#pending);
    return this.#pending.length === 0;
  }

  #write(bytes: Uint8Array): void {
    const all = this.#pending.length === 0 ? bytes : joined(this.#pending, bytes);
    const left = this.#writeSome(all);
    // The writer uses its buffer again.
    this.#pending = left.slice();
  }

  /** @returns what was not written, because a pipe is full */
  #writeSome(bytes: Uint8Array): Uint8Array {
    let at = 0;
    try {
      while (at < bytes.length) at += writeSync(this.#fd, bytes, at);
    } catch (error) {
      if (!isBusy(error)) throw fromNode(error, this.path, { operation: 'port.tx' });
    }
    return bytes.subarray(at);
  }

  /**
   * Writes what was collected. Waits for the reader of a pipe, as long as it goes on taking.
   *
   * @throws DmaError as write(2); EAGAIN if the reader of a pipe takes nothing for {@link PATIENCE_MS}: the rest is lost
   */
  async flush(): Promise<void> {
    this.writer.flush();
    let left = Infinity;
    for (let until = 0; !this.hasRoom; await delay(1)) {
      if (this.#pending.length < left) until = now() + PATIENCE_MS;
      left = this.#pending.length;
      if (now() < until) continue;
      this.#pending = new Uint8Array(0);
      const reason = `${this.path}: its reader does not take ${left} bytes`;
      throw new DmaError({ code: 'EAGAIN', operation: 'port.stop', reason, hint: 'they are lost' });
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    closeCapture(this.#fd);
  }
}

function opened(path: string, flags: number, hint?: string): number {
  try {
    return openSync(path, flags);
  } catch (error) {
    const isPipe = error instanceof Error && 'code' in error && error.code === 'ENXIO';
    throw fromNode(error, path, { operation: 'open', hint: isPipe ? hint : undefined });
  }
}

function isBusy(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'EAGAIN';
}

function joined(first: Uint8Array, second: Uint8Array): Uint8Array<ArrayBuffer> {
  const both = new Uint8Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}
