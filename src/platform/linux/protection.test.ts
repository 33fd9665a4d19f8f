import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import assert from 'node:assert/strict';
import type { Va } from '../../units.js';
import { protectionIn } from './protection.js';
import { openPlatform } from '../open.js';

const { memory, limitation } = openPlatform();
const skip = limitation ?? false;
const PAGE = memory.pageSize;

test('an address is allowed what /proc/self/maps says of it, and a range what all of it is', { skip }, () => {
  // Pages of every kind next to each other, and a hole.
  const va = memory.reserve(8 * PAGE, PAGE);
  const own = memory.map({ length: 4 * PAGE });
  const shown = memory.map({ length: 3 * PAGE, readOnly: true });
  memory.unmap((own + PAGE) as Va, PAGE);
  try {
    const maps = readFileSync('/proc/self/maps', 'latin1');
    const starts = [va, own, shown].flatMap((at) => [at - PAGE, at, at + 1, at + PAGE, at + 2 * PAGE]);
    const code = [...maps.matchAll(/^([0-9a-f]+)-.* [r-][w-]x/gm)].map(([, start]) => parseInt(start, 16));
    for (const start of [...starts, ...code.slice(0, 4)])
      for (const length of [1, PAGE, PAGE + 1, 3 * PAGE, 9 * PAGE])
        assert.equal(
          memory.protection(start as Va, length),
          protectionIn(maps, start, start + length),
          `${start} ${length}`,
        );
  } finally {
    memory.unmap(va, 8 * PAGE);
    memory.unmap(own, PAGE);
    memory.unmap((own + 2 * PAGE) as Va, 2 * PAGE);
    memory.unmap(shown, 3 * PAGE);
  }
});
