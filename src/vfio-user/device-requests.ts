/** Accesses of a served device to memory that it asks for by message: what the client's end answers. */
import { isDmaError, type ErrorCode } from '../errors.js';
import { isAddress } from '../units.js';
import type { Channel } from './channel.js';
import type { DmaTarget } from './client-options.js';
import { protocolError } from './framing.js';
import {
  COMMAND,
  HEADER_SIZE,
  REGION_ACCESS_SIZE,
  decodeDmaAccess,
  encodeDmaReadReply,
  encodeDmaWriteReply,
  operationOf,
  putErrorReply,
  type Message,
} from './messages.js';
import { OutBuffer } from './out-buffer.js';

/** Answers the commands of a server. Only DMA accesses are allowed. */
export class DeviceRequests {
  readonly #memory: DmaTarget | undefined;
  /** Separate from the buffer of commands, because the server may ask while a command is being written. */
  readonly #replies = new OutBuffer();

  constructor(memory: DmaTarget | undefined) {
    this.#memory = memory;
  }

  /** @throws DmaError EPROTO if the server breaks the protocol */
  serve(channel: Channel, message: Message): void {
    if (message.fds.length > 0) throw protocolError(`descriptors with ${operationOf(message.command)}`);
    const size = this.#answer(message);
    // A server that asks without reading answers is broken.
    if (!channel.send(this.#replies.message(size))) throw protocolError('the server asks but does not read');
  }

  /** Writes the answer to `#replies`; returns its size. */
  #answer(message: Message): number {
    const { command, id } = message;
    if (command !== COMMAND.DMA_READ && command !== COMMAND.DMA_WRITE)
      return putErrorReply(this.#replies.bytes, id, command, 'EINVAL');
    let access;
    try {
      access = decodeDmaAccess(message);
    } catch {
      return putErrorReply(this.#replies.bytes, id, command, 'EINVAL');
    }
    const { iova, count } = access;
    const bytes = this.#bytes(iova, count, command === COMMAND.DMA_READ ? 'read' : 'write');
    if (typeof bytes === 'string') return putErrorReply(this.#replies.bytes, id, command, bytes);
    if (command === COMMAND.DMA_WRITE) {
      bytes.set(message.payload.subarray(REGION_ACCESS_SIZE, REGION_ACCESS_SIZE + count));
      return encodeDmaWriteReply(this.#replies.bytes, message, access);
    }
    this.#replies.reserve(HEADER_SIZE + REGION_ACCESS_SIZE + count);
    return encodeDmaReadReply(this.#replies.bytes, message, iova, bytes);
  }

  /** The memory that is asked for, or why there is none. */
  #bytes(iova: number, count: number, access: 'read' | 'write'): Uint8Array | ErrorCode {
    if (!isAddress(iova) || !isAddress(iova + count)) return 'EFAULT';
    try {
      const bytes = this.#memory?.(iova, count, access) ?? 'EFAULT';
      return typeof bytes === 'string' || bytes.length === count ? bytes : 'EFAULT';
    } catch (error) {
      return isDmaError(error) ? error.code : 'EFAULT';
    }
  }
}
