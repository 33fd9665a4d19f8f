/** Writes packets to captures, with the times and lengths that they came with. */
import { wallClock } from '../../timers.js';
import { OFFLOAD } from '../offloads.js';
import { NONE, type Packets } from '../packets.js';
import type { CaptureWriter } from './capture-writer.js';

/** Reused for every frame. */
const facts = { wire: 0, seconds: 0, nanos: 0 };

/** Writes one packet; one without a time gets that of now. @throws what the writer throws */
export function writePacket(writer: CaptureWriter, packets: Packets, packet: number): void {
  const total = packets.total[packet] ?? 0;
  const flags = packets.flags[packet] ?? 0;
  facts.wire = (flags & OFFLOAD.RX_CUT) === 0 ? total : Math.max(total, packets.wire[packet] ?? 0);
  if ((flags & OFFLOAD.RX_TIMESTAMP) === 0) {
    const ms = wallClock();
    facts.seconds = Math.floor(ms / 1000);
    facts.nanos = Math.floor((ms % 1000) * 1e6);
  } else {
    facts.seconds = packets.seconds[packet] ?? 0;
    facts.nanos = packets.nanos[packet] ?? 0;
  }
  writer.begin(facts, total);
  for (let segment = packet; segment !== NONE; segment = packets.next[segment] ?? NONE)
    writer.add(packets.bytes(segment));
  writer.end(total);
}
