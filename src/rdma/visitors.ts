/**
 * Admission of clients to a server of the exchange. A new connection is a stranger until its hello, then a guest until
 * it is closed. The number of guests is limited, in all and per address. Strangers never block others: when too many
 * are connected, the oldest one is closed, of the address that has most of them.
 */
import { isIPv6, type Socket } from 'node:net';

/** A connected client. */
export interface Visitor {
  /** Called at its hello. @returns whether there is room for another guest */
  stays(): boolean;
}

/** The least number of strangers allowed, even if `maxSessions` is smaller. */
const LEAST_STRANGERS = 8;

/** Admits the clients of one server. */
export class Visitors {
  readonly #maxGuests: number;
  readonly #maxPerAddress: number;
  readonly #maxStrangers: number;
  /** Strangers with their addresses, oldest first. */
  readonly #strangers = new Map<Socket, string>();
  /** Number of guests per address. */
  readonly #guests = new Map<string, number>();
  #count = 0;

  constructor(maxGuests: number, maxPerAddress: number) {
    this.#maxGuests = maxGuests;
    this.#maxPerAddress = maxPerAddress;
    this.#maxStrangers = Math.max(LEAST_STRANGERS, maxGuests);
  }

  /** How many guests there are. */
  get guests(): number {
    return this.#count;
  }

  /** A client has connected. @returns `undefined` if it was rejected */
  arrives(socket: Socket, address: string): Visitor | undefined {
    const from = networkOf(address);
    if (!this.#hasRoom(from)) {
      sendAway(socket);
      return undefined;
    }
    if (this.#strangers.size >= this.#maxStrangers) this.makeRoom();
    this.#strangers.set(socket, from);
    socket.once('close', () => this.#strangers.delete(socket));
    return { stays: () => this.#stays(socket, from) };
  }

  /** Closes a stranger: the oldest one of the address with the most strangers. */
  makeRoom(): void {
    const counts = new Map<string, number>();
    for (const from of this.#strangers.values()) counts.set(from, (counts.get(from) ?? 0) + 1);
    const most = Math.max(...counts.values());
    for (const [socket, from] of this.#strangers)
      if (counts.get(from) === most) {
        this.#strangers.delete(socket);
        sendAway(socket);
        return;
      }
  }

  sendStrangersAway(): void {
    for (const socket of this.#strangers.keys()) sendAway(socket);
  }

  #stays(socket: Socket, from: string): boolean {
    this.#strangers.delete(socket);
    // It is closed already, and takes no room.
    if (socket.destroyed) return true;
    if (!this.#hasRoom(from)) return false;
    this.#count++;
    this.#guests.set(from, (this.#guests.get(from) ?? 0) + 1);
    socket.once('close', () => {
      this.#count--;
      const left = (this.#guests.get(from) ?? 0) - 1;
      if (left > 0) this.#guests.set(from, left);
      else this.#guests.delete(from);
    });
    return true;
  }

  #hasRoom(from: string): boolean {
    return this.#count < this.#maxGuests && (this.#guests.get(from) ?? 0) < this.#maxPerAddress;
  }
}

/** The network of addresses that one peer controls: for IPv6 the first 64 bits. */
export function networkOf(address: string): string {
  const [plain = ''] = address.split('%');
  if (!isIPv6(plain)) return plain;
  const [head = '', tail] = plain.split('::');
  const groups = head === '' ? [] : head.split(':');
  const after = tail === undefined || tail === '' ? [] : tail.split(':');
  const zeros = tail === undefined ? 0 : Math.max(0, 8 - groups.length - after.length);
  const all = [...groups, ...new Array<string>(zeros).fill('0'), ...after];
  return all
    .slice(0, 4)
    .map((group) => parseInt(group, 16).toString(16))
    .join(':');
}

function sendAway(socket: Socket): void {
  socket.on('error', () => undefined);
  socket.destroy();
}
