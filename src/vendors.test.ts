/** What is the same for every vendor knows none: it imports no file that a vendor's room or name is in the path of. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { describe, it } from 'node:test';

const SOURCES = new URL('../../src/', import.meta.url);
const VENDOR = /(?:^|[/.-])(?:pci|vfio|vfio-user|rdma|verbs|vdev|edu|copy-engine|mlx\w*|iommufd)(?=[/.-]|$)/;

/** Source files below a folder, by their paths in `src/`. */
function filesOf(folder: string): string[] {
  return readdirSync(new URL(folder, SOURCES), { recursive: true, encoding: 'utf8' })
    .map((name) => `${folder}${name}`)
    .filter((name) => name.endsWith('.ts') && !name.endsWith('.test.ts'));
}

/** What a file imports of its own folders, by the paths that it writes. */
function vendorsOf(file: string): string[] {
  const text = readFileSync(new URL(file, SOURCES), 'utf8');
  const imported = [...text.matchAll(/(?:from|import)\s*\(?\s*'(\.[^']+)'/g)].map(([, path]) => path);
  return imported.filter((path) => VENDOR.test(path));
}

describe('no vendor is known', () => {
  const model = ['bus/model.ts', 'bus/device.ts', 'bus/registry.ts', 'bus/match.ts', 'bus/fan-out.ts'];
  // Commands of one vendor, and the two files that list them.
  const own = /^cli\/(?:rdma\/|devices\/(?:un)?bind|serve|demo\/copier)/;
  const lists = ['cli/program.ts'];
  const commands = filesOf('cli/').filter((file) => !own.test(file) && !lists.includes(file));
  for (const [what, files] of [
    ['the model of buses', model],
    ['the DMA core', filesOf('dma/')],
    ['memory', filesOf('memory/')],
    ['the Eal', ['eal.ts']],
    ["commands that are no vendor's own", commands],
  ] as const)
    it(`by ${what}`, () => {
      assert.ok(files.length > 0);
      for (const file of files) assert.deepEqual(vendorsOf(file), [], file);
    });

  it('and a vendor would be found', () => {
    assert.ok(vendorsOf('bus/builtin.ts').length > 5);
    assert.ok(vendorsOf('drivers/builtin.ts').length > 2);
  });
});
