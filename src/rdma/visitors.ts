/**
 * Who may come to a server of the exchange. Whoever connects is a stranger until he has said hello, and a guest from then on, until
 * his connection is gone. There are so many guests at most, and fewer from one address. Strangers never keep others out: when there
 * are as many, one who came before makes room, of the address that most of them are from.
 */
import { isIPv6, type Socket } from 'node:net';

/** One who has come. */
export interface Visitor {
  /** He has said hello. @returns whether there is room for a guest more */
  stays(): boolean;
}

/** Strangers at once, however few guests there may be. */
const LEAST_STRANGERS = 8;

/** See the head of the file. */
export class Visitors {
  readonly #maxGuests: number;
  readonly #maxPerAddress: number;
  readonly #maxStrangers: number;
  /** With where they are from; who came first is first. */
  readonly #strangers = new Map<Socket, string>();
  /** How many there are, by where they are from. */
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

  /** Somebody has connected. @returns `undefined` when he was sent away */
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

  /** A stranger goes: of those from where most are from the one who came first. */
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
    // He has left already, and takes no room.
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

/** What one peer has all addresses of: of IPv6 the first 64 bits. */
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
