/** The short form of the battery of hostile clients; `every` 1 tears messages at every byte. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { attackServer } from '../../test/hostile/battery.js';
import { openPlatform } from '../platform/open.js';

const platform = openPlatform();

test(
  'a served device outlives every kind of descriptor, and every message torn, repeated and too early',
  { skip: platform.limitation ?? false },
  async () => {
    const folder = mkdtempSync(join(tmpdir(), 'hostile-'));
    try {
      await attackServer(platform, folder, 7);
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
);
