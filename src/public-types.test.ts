/** What the package's types promise to programs: the strictest settings compile against them, and kinds of addresses differ. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { before, describe, it } from 'node:test';
import ts from 'typescript';

const ROOT = resolve(import.meta.dirname, '../..');
const { exports } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as {
  exports: Record<string, { types?: string }>;
};
/** What the package exports, by the name that programs import: the types of each. */
const ENTRIES = Object.entries(exports).flatMap(([path, { types }]) =>
  types === undefined ? [] : [{ name: join('anydma', path), types: join(ROOT, types) }],
);

const STRICT: ts.CompilerOptions = {
  strict: true,
  noUncheckedIndexedAccess: true,
  exactOptionalPropertyTypes: true,
  noImplicitOverride: true,
  noPropertyAccessFromIndexSignature: true,
  isolatedModules: true,
  verbatimModuleSyntax: true,
  declaration: true,
  noEmit: true,
  target: ts.ScriptTarget.ES2022,
  lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
  types: ['node'],
  typeRoots: [join(ROOT, 'node_modules/@types')],
};

/** The TypeScript of a document, as one program. */
function blocksOf(document: string): string {
  const text = readFileSync(join(ROOT, document), 'utf8');
  return [...text.matchAll(/^```ts\n([^]*?)^```/gm)].map(([, block]) => block).join('\n');
}

/** What every snippet may use. */
const GIVEN = `
import { once } from 'node:events';
import { copyEngineDriver, eduDriver, Eal, type Device, type Iova, type Va } from 'anydma';
declare const eal: Eal, device: Device, va: Va, iova: Iova;
const engine = device.use(copyEngineDriver), edu = device.use(eduDriver);
const block = eal.malloc(64), zone = eal.zones.reserve('z', 64), memory = eal.external.allocate(4096);
const pool = eal.pools.create({ elements: 4, elementSize: 64 });
`;

/** What has to compile. */
const RIGHT: Readonly<Record<string, string>> = {
  'plain numbers, sums and elements of arrays as IOVAs': `
    device.dmaMap(memory, { iova: 0x1000 });
    const [first = 0] = pool.iovasFor(device);
    void engine.copy(first, iova + 4096, 64);
    void edu.copyIn(first, 0, 64);
    device.explain(first);
    device.dmaUnmap({ va: memory.va, length: 4096, iova: 0x1000 });`,
  'a part of memory, by a sum': 'device.dmaMap({ va: memory.va + 4096, length: 4096 }); device.iovaOf(block.va + 1);',
  'addresses from a device': 'void engine.copy(device.iovaOf(block), device.iovaOf(zone), 64);',
  'an IOVA for all devices, once it is known to be there': `
    if (block.iova !== undefined) void engine.copy(block.iova, iova, 64);
    const all: Float64Array | undefined = pool.iovas;`,
  'waiting for an event': "const [lost] = await once(eal.events, 'lost');",
  'exporting whatever a call returns': `
    export const made = [block, zone, memory, pool, engine, edu] as const;
    export const mapping = device.dmaMap(memory), group = eal.dmaMapAll(memory), domain = device.domain;
    export const { external, heaps, zones, pools, memory: owned, containers, vdev, platform, events } = eal;
    export const access = device.access, registers = access.registers(0), facts = owned.facts(), runs = block.area.iovaRuns(block.area.range);
    export const stack = pool.share(), cache = pool.cache, segments = mapping.segments, { table, constraints } = table0();
    function table0() { return domain ?? assertNever(); }
    function assertNever(): never { throw new Error(); }`,
};

/** What must not. */
const WRONG: Readonly<Record<string, string>> = {
  'a VA where the copy engine takes an IOVA': 'void engine.copy(va, iova, 64);',
  'a VA as the other IOVA': 'void engine.copy(iova, block.va, 64);',
  'a VA where edu takes an IOVA': 'void edu.copyIn(block.va, 0, 64);',
  'a VA as the IOVA of a mapping': 'device.dmaMap(memory, { iova: memory.va });',
  'an IOVA as a VA to map': 'device.dmaMap({ va: iova, length: 64 });',
  'a VA to be explained as an IOVA': 'device.explain(block.va);',
  'an IOVA where a VA is asked about': 'device.iovaOf(iova);',
  'the IOVA of a block that may have none': 'void engine.copy(block.iova, iova, 64);',
  'the IOVA of a zone that may have none': 'void engine.copy(zone.iova, iova, 64);',
  'the IOVAs of a pool that may have none': 'const first = pool.iovas[0];',
};

/** What programs pass on and do not look into. */
const OPAQUE = new Set(['Platform']);

/** `anydma` is for what every program needs: a name that few programs write down is in another entry. */
const MOST_NAMES = 85;

describe('the types of the package', () => {
  const sources = new Map<string, string>();
  let program: ts.Program;
  const virtual = (name: string): string => join(ROOT, `${name.replaceAll(/\W/g, '-')}.virtual.mts`);
  const told = (file: string): string[] =>
    ts
      .getPreEmitDiagnostics(program, program.getSourceFile(file))
      .map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, '\n'));

  before(() => {
    sources.set(virtual('README'), blocksOf('README.md'));
    for (const [name, text] of [...Object.entries(RIGHT), ...Object.entries(WRONG)])
      sources.set(virtual(name), `${GIVEN}\n${text}`);
    const examples = readdirSync(join(ROOT, 'examples')).filter((name) => name.endsWith('.ts'));
    const host = ts.createCompilerHost(STRICT);
    const { fileExists, readFile } = host;
    host.fileExists = (name) => sources.has(name) || fileExists(name);
    host.readFile = (name) => sources.get(name) ?? readFile(name);
    const roots = [...sources.keys(), ...examples.map((name) => join(ROOT, 'examples', name))];
    roots.push(...ENTRIES.map(({ types }) => types));
    program = ts.createProgram(roots, STRICT, host);
  });

  for (const { name, types } of ENTRIES)
    it(`of ${name} compile in themselves with the strictest settings`, () => assert.deepEqual(told(types), []));

  it('compile with the examples and the README', () => {
    for (const file of program.getRootFileNames())
      if (file.includes('/examples/') || file === virtual('README')) assert.deepEqual(told(file), [], file);
  });

  for (const name of Object.keys(RIGHT)) it(`allow ${name}`, () => assert.deepEqual(told(virtual(name)), []));

  for (const name of Object.keys(WRONG))
    it(`refuse ${name}`, () => {
      const errors = told(virtual(name));
      assert.equal(errors.length, 1, errors.join('\n'));
      assert.match(errors[0], /not assignable|possibly 'undefined'|No overload/);
    });

  for (const { name, types } of ENTRIES)
    it(`of ${name} can all be named: what a signature mentions is exported by one of the entries`, () => {
      assert.deepEqual(notExported(program, types), []);
    });

  it('are exported once, and by the entry that has their subject: anydma has few', () => {
    const checker = program.getTypeChecker();
    const homes = new Map<ts.Symbol, string>();
    const again: string[] = [];
    for (const { name, types } of ENTRIES)
      for (const symbol of exportsOf(program, types)) {
        const target = real(checker, symbol);
        const home = homes.get(target);
        if (home !== undefined) again.push(`${symbol.name}: ${home} and ${name}`);
        homes.set(target, name);
      }
    assert.deepEqual(again, []);
    const names = exportsOf(program, ENTRIES[0].types).map((symbol) => symbol.name);
    assert.ok(names.length <= MOST_NAMES, `${names.length}: ${names.join(', ')}`);
  });
});

/** What a module exports. */
function exportsOf(program: ts.Program, file: string): ts.Symbol[] {
  const source = program.getSourceFile(file);
  const checker = program.getTypeChecker();
  const module = source === undefined ? undefined : checker.getSymbolAtLocation(source);
  assert.ok(module !== undefined);
  return checker.getExportsOfModule(module);
}

/** The symbol itself, where this is another name for it. */
function real(checker: ts.TypeChecker, symbol: ts.Symbol): ts.Symbol {
  return (symbol.flags & ts.SymbolFlags.Alias) === 0 ? symbol : checker.getAliasedSymbol(symbol);
}

/** Types of ours that signatures of a module mention, and that no entry exports. */
function notExported(program: ts.Program, file: string): string[] {
  const checker = program.getTypeChecker();
  const symbols = exportsOf(program, file);
  const exported = new Set(symbols.map((symbol) => real(checker, symbol)));
  const nameable = new Set(
    ENTRIES.flatMap(({ types }) => exportsOf(program, types)).map((symbol) => real(checker, symbol)),
  );
  // Classes that are exported as types only can not be constructed.
  const made = new Set(
    symbols
      .filter(({ declarations }) =>
        declarations?.some((each) => ts.isExportSpecifier(each) && !ts.isTypeOnlyExportDeclaration(each)),
      )
      .map(({ name }) => name),
  );
  const missing = new Set<string>();
  const visit = (node: ts.Node, owner: string): void => {
    if (ts.isClassElement(node) || ts.isTypeElement(node)) {
      if (ts.isConstructorDeclaration(node) && !made.has(owner)) return;
      const isPrivate = ts.isPropertyDeclaration(node) && ts.isPrivateIdentifier(node.name);
      if (isPrivate) return;
      if (ts.canHaveModifiers(node) && ts.getModifiers(node)?.some(({ kind }) => kind === ts.SyntaxKind.PrivateKeyword))
        return;
    }
    const name = ts.isTypeReferenceNode(node)
      ? node.typeName
      : ts.isExpressionWithTypeArguments(node)
        ? node.expression
        : undefined;
    const symbol = name === undefined ? undefined : checker.getSymbolAtLocation(name);
    if (symbol !== undefined) {
      const target = real(checker, symbol);
      const [declaration] = target.declarations ?? [];
      const from = declaration?.getSourceFile().fileName ?? '';
      const isOurs = from.startsWith(join(ROOT, 'dist/src'));
      if (isOurs && !ts.isTypeParameterDeclaration(declaration) && !nameable.has(target))
        missing.add(`${target.name} (in ${owner})`);
    }
    ts.forEachChild(node, (child) => visit(child, owner));
  };
  for (const symbol of exported)
    if (!OPAQUE.has(symbol.name)) for (const each of symbol.declarations ?? []) visit(each, symbol.name);
  return [...missing].sort();
}
