/** The short form of the battery of hostile peers: a sample of all attacks, another one each time. `npm run hostile` does all. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { attackServer } from '../../test/hostile/battery.js';
import { attackClient } from '../../test/hostile/servers.js';
import { Times } from '../../test/hostile/times.js';
import { openPlatform } from '../platform/open.js';

const platform = openPlatform();

for (const [what, attack] of [
  ['a served device outlives hostile clients', attackServer],
  ['a client outlives hostile servers', attackClient],
] as const)
  test(what, { skip: platform.limitation ?? false }, async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'hostile-'));
    const times = new Times();
    try {
      t.diagnostic(`${await attack(platform, folder, { every: 29, some: 23, times })} attacks`);
    } finally {
      rmSync(folder, { recursive: true });
    }
    for (const line of times.lines(3)) t.diagnostic(line);
  });
