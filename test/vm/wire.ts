/**
 * The other end of a cable of a guest, on the host: a socket that QEMU's `dgram` backend sends each frame to. It sends frames back to who sent
 * them, with the addresses swapped.
 */
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import type { Qmp } from './qmp.js';

const LOCALHOST = '127.0.0.1';
/** What the system gives at most, so that a burst finds room. */
const SOCKET_BYTES = 4 << 20;

/** A cable that is plugged in. */
export class Wire implements Disposable {
  /** Frames that came, and went back. */
  frames = 0;
  readonly #socket: Socket;
  readonly #to: number;

  private constructor(socket: Socket, to: number) {
    this.#socket = socket;
    this.#to = to;
    socket.on('message', (frame) => this.#echo(frame));
    // The guest may be gone.
    socket.on('error', () => undefined);
  }

  /** Makes the network backend `id` of the machine, for `deviceAdd({ netdev: id })`. */
  static async open(qmp: Qmp, id: string): Promise<Wire> {
    const socket = await bound();
    // A port for QEMU: nobody takes it in the moment between.
    const probe = await bound();
    const to = portOf(probe);
    probe.close();
    await once(probe, 'close');
    try {
      const end = (port: number): object => ({ type: 'inet', host: LOCALHOST, port: String(port) });
      await qmp.execute('netdev_add', { type: 'dgram', id, local: end(to), remote: end(portOf(socket)) });
    } catch (error) {
      socket.close();
      throw error;
    }
    return new Wire(socket, to);
  }

  #echo(frame: Buffer): void {
    // What the guest's kernel sends to groups is not for us.
    if (frame.length < 14 || (frame[0] & 1) !== 0) return;
    this.frames++;
    const back = Buffer.concat([frame.subarray(6, 12), frame.subarray(0, 6), frame.subarray(12)]);
    this.#socket.send(back, this.#to, LOCALHOST);
  }

  [Symbol.dispose](): void {
    this.#socket.close();
  }
}

async function bound(): Promise<Socket> {
  const socket = createSocket('udp4');
  socket.bind(0, LOCALHOST);
  await once(socket, 'listening');
  try {
    socket.setRecvBufferSize(SOCKET_BYTES);
  } catch {
    // The system's own size then.
  }
  return socket;
}

function portOf(socket: Socket): number {
  return socket.address().port;
}
