//! Whether a policy and its bindings may be stored; a policy that may is compiled by the same function.

use mainstay_model::meta::names::{check_qualified_name, check_subdomain};
use mainstay_model::status::{FieldError, FieldErrorKind};
use serde_json::{Value, json};

use super::{Conditions, MUTATING, Policy, VALIDATING, Validation, mutation};
use crate::cel::{AUTHORIZER, Environment, Program, Type};
use crate::path::{Faults, Path};

/// Status reasons a validation may ask for.
const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
/// Most match conditions, variables, validations or audit annotations.
const EXPRESSIONS_MAX: usize = 64;

impl Policy {
    /// Compiles a policy object of one of the two kinds.
    ///
    /// # Errors
    /// All faults of the object.
    pub fn compile(kind: &str, policy: &Value) -> Result<Self, Vec<FieldError>> {
        let mut faults = Faults::default();
        let spec = &policy["spec"];
        let has_params = !spec["paramKind"].is_null();
        let mutates = kind == MUTATING;
        check_spec(spec, mutates, &mut faults);
        let conditions =
            Conditions(conditions(&spec["matchConditions"], has_params, "spec.matchConditions", &mut faults));
        let base = environment(has_params);
        let base = if mutates { base.making_objects() } else { base };
        let (variables, environment) = variables(spec, &base, &mut faults);
        let validations = validations(spec, &environment, &mut faults);
        let annotations = annotations(spec, &environment, &mut faults);
        let mutations = if mutates { mutation::compile(spec, &environment, &mut faults) } else { Vec::new() };
        if !faults.list.is_empty() {
            return Err(faults.list);
        }
        Ok(Self {
            name: policy["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            fails_closed: spec["failurePolicy"] != "Ignore",
            conditions,
            variables,
            validations,
            annotations,
            mutations,
            reinvoked: spec["reinvocationPolicy"] == "IfNeeded",
        })
    }
}

/// Fills in what a policy or a binding may leave out.
pub fn apply_defaults(kind: &str, object: &mut Value) {
    let spec = &mut object["spec"];
    let (constraints, required) = match kind {
        MUTATING | VALIDATING => ("matchConstraints", true),
        _ => ("matchResources", false),
    };
    if !spec.is_object() {
        return;
    }
    if required && spec["failurePolicy"].is_null() {
        spec["failurePolicy"] = json!("Fail");
    }
    if kind == MUTATING && spec["reinvocationPolicy"].is_null() {
        spec["reinvocationPolicy"] = json!("Never");
    }
    let constraints = &mut spec[constraints];
    if constraints.is_object() {
        for (field, default) in
            [("matchPolicy", json!("Equivalent")), ("namespaceSelector", json!({})), ("objectSelector", json!({}))]
        {
            if constraints[field].is_null() {
                constraints[field] = default;
            }
        }
        for rules in ["resourceRules", "excludeResourceRules"] {
            for rule in constraints.get_mut(rules).and_then(Value::as_array_mut).into_iter().flatten() {
                if rule["scope"].is_null() && rule.is_object() {
                    rule["scope"] = json!("*");
                }
            }
        }
    } else if constraints.is_null()
        && let Some(spec) = spec.as_object_mut()
    {
        // Looking at it has put it there.
        spec.retain(|_, value| !value.is_null());
    }
}

/// The faults of a policy or of a binding.
pub fn validate(kind: &str, object: &Value) -> Vec<FieldError> {
    if matches!(kind, MUTATING | VALIDATING) {
        return Policy::compile(kind, object).err().unwrap_or_default();
    }
    let mut faults = Faults::default();
    check_binding(&object["spec"], &mut faults);
    if kind == "ValidatingAdmissionPolicyBinding" {
        check_actions(&object["spec"], &mut faults);
    }
    faults.list
}

fn check_binding(spec: &Value, faults: &mut Faults) {
    match spec["policyName"].as_str().unwrap_or_default() {
        "" => faults.required("spec.policyName", ""),
        name => {
            for rule in check_subdomain(name) {
                faults.invalid("spec.policyName", &json!(name), rule);
            }
        }
    }
    check_parameters(&spec["paramRef"], faults);
}

/// What shall be done about a write that a policy does not allow.
fn check_actions(spec: &Value, faults: &mut Faults) {
    let actions: Vec<&str> =
        spec["validationActions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if actions.is_empty() {
        faults.required("spec.validationActions", "");
    }
    for (i, action) in actions.iter().enumerate() {
        let path = format!("spec.validationActions[{i}]");
        if !["Audit", "Deny", "Warn"].contains(action) {
            faults.not_supported(&path, &json!(action), &["Audit", "Deny", "Warn"]);
        } else if actions[..i].contains(action) {
            faults.duplicate(&path, &json!(action));
        }
    }
    if actions.contains(&"Deny") && actions.contains(&"Warn") {
        let rule = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        faults.invalid("spec.validationActions", &spec["validationActions"], rule);
    }
}

fn check_parameters(param: &Value, faults: &mut Faults) {
    if !param.is_null() {
        let path = Path::root("spec.paramRef");
        let named = param["name"].as_str().is_some_and(|name| !name.is_empty());
        match (named, param["selector"].is_null()) {
            (true, false) => faults.forbidden(path.field("name"), "name and selector are mutually exclusive"),
            (false, true) => faults.required(path, "one of name or selector must be specified"),
            _ => {}
        }
        match param["parameterNotFoundAction"].as_str().unwrap_or_default() {
            "" => faults.required(path.field("parameterNotFoundAction"), ""),
            "Allow" | "Deny" => {}
            _ => {
                let given = &param["parameterNotFoundAction"];
                faults.not_supported(path.field("parameterNotFoundAction"), given, &["Allow", "Deny"]);
            }
        }
    }
}

fn check_spec(spec: &Value, mutates: bool, faults: &mut Faults) {
    if spec["matchConstraints"].is_null() {
        faults.required("spec.matchConstraints", "");
    } else {
        // Who changes objects has nothing to say about their deletion.
        let operations = if mutates { &["*", "CONNECT", "CREATE", "UPDATE"] } else { OPERATIONS };
        check_constraints(&spec["matchConstraints"], operations, faults);
    }
    if let Some(policy) = spec["failurePolicy"].as_str().filter(|policy| !matches!(*policy, "Fail" | "Ignore")) {
        faults.not_supported("spec.failurePolicy", &json!(policy), &["Fail", "Ignore"]);
    }
    let param = &spec["paramKind"];
    if !param.is_null() {
        for field in ["apiVersion", "kind"] {
            if param[field].as_str().is_none_or(str::is_empty) {
                faults.required(Path::root("spec.paramKind").field(field), "");
            }
        }
    }
    let list = |field: &str| spec[field].as_array().map_or(0, Vec::len);
    if mutates {
        if list("mutations") == 0 {
            faults.required("spec.mutations", "mutations must contain at least one item");
        }
        match spec["reinvocationPolicy"].as_str().unwrap_or_default() {
            "IfNeeded" | "Never" => {}
            "" => faults.required("spec.reinvocationPolicy", ""),
            other => faults.not_supported("spec.reinvocationPolicy", &json!(other), &["IfNeeded", "Never"]),
        }
    } else if list("validations") + list("auditAnnotations") == 0 {
        faults.required("spec.validations", "validations or auditAnnotations must contain at least one item");
    }
    for field in ["auditAnnotations", "matchConditions", "mutations", "validations", "variables"] {
        if list(field) > EXPRESSIONS_MAX {
            faults.too_many(format!("spec.{field}"), list(field), EXPRESSIONS_MAX as u64);
        }
    }
}

fn check_constraints(constraints: &Value, allowed: &[&str], faults: &mut Faults) {
    let path = Path::root("spec.matchConstraints");
    let rules = constraints["resourceRules"].as_array().map_or(&[][..], Vec::as_slice);
    let list = path.field("resourceRules");
    if rules.is_empty() {
        faults.required(list, "");
    }
    for (i, rule) in rules.iter().enumerate() {
        let here = list.index(i);
        for field in ["apiGroups", "apiVersions", "operations", "resources"] {
            if rule[field].as_array().is_none_or(Vec::is_empty) {
                faults.required(here.field(field), "");
            }
        }
        let operations = here.field("operations");
        for (j, operation) in rule["operations"].as_array().into_iter().flatten().enumerate() {
            if !operation.as_str().is_some_and(|word| allowed.contains(&word)) {
                faults.not_supported(operations.index(j), operation, allowed);
            }
        }
    }
}

fn environment(has_params: bool) -> Environment {
    let texts = |names: &[&'static str]| Type::object(names.iter().map(|name| (*name, Type::String)));
    let request = Type::object([
        ("kind", texts(&["group", "version", "kind"])),
        ("resource", texts(&["group", "version", "resource"])),
        ("subResource", Type::String),
        ("requestKind", texts(&["group", "version", "kind"])),
        ("requestResource", texts(&["group", "version", "resource"])),
        ("requestSubResource", Type::String),
        ("name", Type::String),
        ("namespace", Type::String),
        ("operation", Type::String),
        (
            "userInfo",
            Type::object([
                ("username", Type::String),
                ("uid", Type::String),
                ("groups", Type::list(Type::String)),
                ("extra", Type::map(Type::String, Type::list(Type::String))),
            ]),
        ),
        ("dryRun", Type::Bool),
        ("options", Type::Dyn),
    ]);
    let base = Environment::new()
        .with("object", Type::Dyn)
        .with("oldObject", Type::Dyn)
        .with("request", request)
        .with("namespaceObject", Type::Dyn)
        .with("authorizer", Type::Opaque(AUTHORIZER));
    if has_params { base.with("params", Type::Dyn) } else { base }
}

/// Compiles the expression in a field, and reports what is wrong with it.
pub(super) fn expression(
    item: &Value,
    field: &str,
    wanted: &[Type],
    environment: &Environment,
    path: &Path<'_>,
    faults: &mut Faults,
) -> Option<Program> {
    let source = item[field].as_str().unwrap_or_default();
    if source.trim().is_empty() {
        faults.required(path.field(field), format!("{field} is not specified"));
        return None;
    }
    match Program::compile(source, environment) {
        Ok(program) if wanted.is_empty() || wanted.contains(program.result_type()) => Some(program),
        Ok(_) => {
            let names: Vec<String> =
                wanted.iter().filter(|wanted| **wanted != Type::Dyn).map(Type::to_string).collect();
            let detail = format!("compilation failed: must evaluate to {}", names.join(" or "));
            faults.invalid(path.field(field), &json!(source), detail);
            None
        }
        Err(error) => {
            faults.invalid(path.field(field), &json!(source), format!("compilation failed: {error}"));
            None
        }
    }
}

impl Conditions {
    /// Compiles a list of `matchConditions`, which stands at `path`.
    ///
    /// # Errors
    /// All faults of the list.
    pub fn compile(list: &Value, path: &str) -> Result<Self, Vec<FieldError>> {
        let mut faults = Faults::default();
        let conditions = conditions(list, false, path, &mut faults);
        if faults.list.is_empty() { Ok(Self(conditions)) } else { Err(faults.list) }
    }
}

fn conditions(given: &Value, has_params: bool, path: &str, faults: &mut Faults) -> Vec<(String, Program)> {
    let environment = environment(has_params);
    let list = Path::root(path);
    let mut all: Vec<(String, Program)> = Vec::new();
    for (i, condition) in given.as_array().into_iter().flatten().enumerate() {
        let path = list.index(i);
        let name = condition["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            faults.required(path.field("name"), "");
        }
        for rule in check_qualified_name(name).into_iter().filter(|_| !name.is_empty()) {
            faults.invalid(path.field("name"), &json!(name), rule);
        }
        if all.iter().any(|(existing, _)| existing == name) {
            faults.duplicate(path.field("name"), &json!(name));
        }
        let program = expression(condition, "expression", &[Type::Bool, Type::Dyn], &environment, &path, faults);
        all.extend(program.map(|program| (name.to_owned(), program)));
    }
    all
}

/// The variables, each compiled with those before it, and what expressions after them may use.
fn variables(spec: &Value, base: &Environment, faults: &mut Faults) -> (Vec<(String, Program)>, Environment) {
    let list = Path::root("spec.variables");
    let mut all: Vec<(String, Program)> = Vec::new();
    let scope = |all: &[(String, Program)]| {
        let fields = all.iter().map(|(name, program)| (name.as_str(), program.result_type().clone()));
        base.clone().with("variables", Type::object(fields))
    };
    for (i, variable) in spec["variables"].as_array().into_iter().flatten().enumerate() {
        let path = list.index(i);
        let name = variable["name"].as_str().unwrap_or_default();
        let identifier = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if name.is_empty() {
            faults.required(path.field("name"), "name is not specified");
        } else if !identifier {
            faults.invalid(path.field("name"), &json!(name), "name is not a valid CEL identifier");
        } else if all.iter().any(|(existing, _)| existing == name) {
            faults.duplicate(path.field("name"), &json!(name));
        }
        let program = expression(variable, "expression", &[], &scope(&all), &path, faults);
        all.extend(program.map(|program| (name.to_owned(), program)));
    }
    let environment = scope(&all);
    (all, environment)
}

fn validations(spec: &Value, environment: &Environment, faults: &mut Faults) -> Vec<Validation> {
    let list = Path::root("spec.validations");
    let mut all = Vec::new();
    for (i, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
        let path = list.index(i);
        let message = validation["message"].as_str().map(str::trim);
        if message == Some("") && !validation["message"].as_str().is_some_and(str::is_empty) {
            faults.invalid(path.field("message"), &validation["message"], "message must be non-empty if specified");
        }
        if message.is_some_and(|message| message.contains('\n')) {
            faults.invalid(path.field("message"), &validation["message"], "message must not contain line breaks");
        }
        let reason = validation["reason"].as_str().filter(|reason| !reason.is_empty());
        if reason.is_some_and(|reason| !REASONS.contains(&reason)) {
            faults.not_supported(path.field("reason"), &validation["reason"], REASONS);
        }
        let program = expression(validation, "expression", &[Type::Bool, Type::Dyn], environment, &path, faults);
        let has_message_program = validation["messageExpression"].as_str().is_some_and(|text| !text.is_empty());
        let message_program = has_message_program
            .then(|| {
                let wanted = [Type::String, Type::Dyn];
                expression(validation, "messageExpression", &wanted, environment, &path, faults)
            })
            .flatten();
        all.extend(program.map(|program| Validation {
            program,
            message: message.filter(|message| !message.is_empty()).map(str::to_owned),
            message_program,
            reason: reason.map(str::to_owned),
        }));
    }
    all
}

fn annotations(spec: &Value, environment: &Environment, faults: &mut Faults) -> Vec<(String, Program)> {
    let list = Path::root("spec.auditAnnotations");
    let mut all: Vec<(String, Program)> = Vec::new();
    for (i, annotation) in spec["auditAnnotations"].as_array().into_iter().flatten().enumerate() {
        let path = list.index(i);
        let key = annotation["key"].as_str().unwrap_or_default();
        if key.is_empty() {
            faults.required(path.field("key"), "");
        }
        if all.iter().any(|(existing, _)| existing == key) {
            faults.push(FieldError::with_value(
                path.field("key").to_string(),
                FieldErrorKind::Duplicate,
                json!(key),
                "",
            ));
        }
        let wanted = [Type::String, Type::Null, Type::Dyn];
        let program = expression(annotation, "valueExpression", &wanted, environment, &path, faults);
        all.extend(program.map(|program| (key.to_owned(), program)));
    }
    all
}
