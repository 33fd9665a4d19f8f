/**
 * The other end of a cable of a guest, on the host: a socket that QEMU's `stream` backend is connected to. It sends frames back to who sent
 * them, with the addresses swapped. Nothing is lost on the way: who can not take more makes the other one wait.
 */
import { once } from 'node:events';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Qmp } from './qmp.js';

/** Bytes in front of a frame: its length, most significant byte first. */
const LENGTH = 4;
const ADDRESS = 6;

/** A cable that is plugged in. */
export class Wire implements Disposable {
  /** Frames that came, and went back. */
  frames = 0;
  readonly #server: Server;
  #socket: Socket | undefined;
  /** What came of a frame that is not whole yet. */
  #rest: Buffer = Buffer.alloc(0);

  private constructor(server: Server) {
    this.#server = server;
    server.on('connection', (socket) => {
      this.#socket = socket;
      socket.on('data', (bytes) => this.#take(bytes));
      socket.on('drain', () => socket.resume());
      // The guest may be gone.
      socket.on('error', () => socket.destroy());
    });
  }

  /** Makes the network backend `id` of the machine, for `deviceAdd({ netdev: id })`. Its socket is in `directory`. */
  static async open(qmp: Qmp, id: string, directory: string): Promise<Wire> {
    const server = createServer();
    const wire = new Wire(server);
    const path = join(directory, `${id}.sock`);
    server.listen(path);
    await once(server, 'listening');
    try {
      const connected = once(server, 'connection');
      await qmp.execute('netdev_add', { type: 'stream', id, server: false, addr: { type: 'unix', path } });
      await connected;
    } catch (error) {
      wire[Symbol.dispose]();
      throw error;
    }
    return wire;
  }

  /** Takes the frames out of what came, and sends them back. */
  #take(bytes: Buffer): void {
    let all = this.#rest.length === 0 ? bytes : Buffer.concat([this.#rest, bytes]);
    while (all.length >= LENGTH) {
      const end = LENGTH + all.readUInt32BE(0);
      if (all.length < end) break;
      this.#echo(all.subarray(0, end));
      all = all.subarray(end);
    }
    this.#rest = all;
  }

  /** @param frame with its length in front */
  #echo(frame: Buffer): void {
    const to = LENGTH;
    const from = to + ADDRESS;
    // What the guest's kernel sends to groups is not for us.
    if (frame.length < from + ADDRESS || (frame[to] & 1) !== 0) return;
    this.frames++;
    const back = Buffer.concat([
      frame.subarray(0, LENGTH),
      frame.subarray(from, from + ADDRESS),
      frame.subarray(to, from),
      frame.subarray(from + ADDRESS),
    ]);
    if (this.#socket?.write(back) === false) this.#socket.pause();
  }

  [Symbol.dispose](): void {
    this.#socket?.destroy();
    this.#server.close();
  }
}
